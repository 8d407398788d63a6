"""What an evaluation wrote is read back whole, or refused with the reason."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k
from mce_llm.eval.saved_runs import COMPARABLE, SavedRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_directory, questions):
    output = tmp_path_factory.mktemp("runs") / "mine" / "gsm8k"
    evaluate_gsm8k(
        Gsm8kConfig(
            model=str(model_directory),
            data=str(questions),
            output=str(output),
            prompt="plain",
            max_new_tokens=6,
        )
    )
    return output


def test_a_real_run(folder):
    run = SavedRun.read(folder)
    assert run.name == "mine"
    assert run.remarks == ()
    assert set(run.identity) == {*COMPARABLE, "model"}
    assert run.identity["task"] == "gsm8k"
    assert run.scores == [float(item["correct"]) for item in run.items]
    assert len(run.items) == run.summary["n"] == 11
    assert run.training_folder is None


def test_the_training_is_found(folder, tmp_path):
    training = tmp_path / "training"
    shutil.copytree(folder, training / "gsm8k")
    (training / "trainer_state.json").write_text("{}")
    assert SavedRun.read(training / "gsm8k").training_folder == training


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "there is no such directory; give the --output of an evaluation"),
        (lambda path: (path / "summary.json").unlink(), "holds no evaluation: it has no summary.json"),
        (
            lambda path: (path / "summary.json").rename(path / "items.rank0.jsonl"),
            "is not finished; the command that began it goes on with it",
        ),
        (
            lambda path: (path / "summary.json").write_text("{"),
            "summary.json cannot be read: JSONDecodeError",
        ),
        (lambda path: (path / "config.json").write_text("[]"), "config.json must hold a JSON object"),
        (lambda path: (path / "config.json").unlink(), "config.json cannot be read: FileNotFoundError"),
        (
            lambda path: change(path / "summary.json", n=12),
            "are not of one run: summary.json counts 12 questions",
        ),
        (
            lambda path: change(path / "summary.json", n=10**30),
            "are not of one run: summary.json counts 10+ questions",
        ),
        (
            lambda path: change(path / "config.json", hashes={}),
            "are not of one run: summary.json and config.json have different hashes of data, decoding, model, prompt;",
        ),
        (
            lambda path: [
                change(path / name, hashes={"data": 1}) for name in ("summary.json", "config.json")
            ],
            "config.json has no hash of prompt, data, decoding, model",
        ),
        (
            lambda path: change(path / "summary.json", task="math"),
            "task is 'math' in summary.json and 'gsm8k' in config.json",
        ),
        (lambda path: change(path / "config.json", versions=["2.0"]), r"versions cannot be \['2.0'\]"),
        (
            lambda path: (path / "summary.json").write_text("[" * 100_000),
            "summary.json cannot be read: RecursionError",
        ),
        (
            lambda path: (path / "config.json").write_text("{}"),
            "does not say with which prompt, data and decoding",
        ),
        (lambda path: (path / "items.jsonl").write_text("{"), "items.jsonl cannot be read"),
    ],
)
def test_damaged_folders(damage, message, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(EvaluationError, match=message):
        SavedRun.read(tmp_path / "copy")


@pytest.mark.parametrize(
    ("written", "remark"),
    [
        ({"accuracy": 10**400}, "an accuracy of 10+; the answers give"),
        ({"correct": 10**400}, "counts 10+ right answers; there are"),
    ],
)
def test_counts_that_are_no_accuracy(written, remark, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    change(tmp_path / "copy" / "summary.json", **written)
    assert re.search(remark, SavedRun.read(tmp_path / "copy").remarks[0])


@pytest.mark.parametrize("model", ["a" * 5000, "~nobody-of-that-name/model", "a\0b"])
def test_a_model_that_is_no_path_here_has_no_training(model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((folder / "config.json").read_text())["settings"]
    change(tmp_path / "copy" / "config.json", settings={**settings, "model": model})
    assert SavedRun.read(tmp_path / "copy").training_folder is None


def test_the_folder_above_is_told_where_to_look(folder):
    with pytest.raises(EvaluationError, match=f"did you mean {folder}"):
        SavedRun.read(folder.parent)


def test_comparing_loads_neither_torch_nor_datasets():
    code = "import sys, mce_llm.commands.compare; print([name for name in ('torch', 'datasets', 'transformers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
