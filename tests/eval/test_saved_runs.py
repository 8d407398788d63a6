"""What an evaluation wrote is read back whole, or refused with the reason."""

import json
import shutil

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
        (lambda path: change(path / "config.json", hashes={}), "are not of one run"),
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


def test_the_folder_above_is_told_where_to_look(folder):
    with pytest.raises(EvaluationError, match=f"did you mean {folder}"):
        SavedRun.read(folder.parent)
