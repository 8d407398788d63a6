"""Reading likelihood evaluations back, and files that cannot be used."""

import json
import shutil
import subprocess
import sys

import pytest

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.likelihood.evaluation import evaluate_likelihood
from mce_llm.eval.likelihood.saved import COMPARABLE_LIKELIHOODS, SavedLikelihood
from mce_llm.eval.likelihood.settings import LikelihoodConfig
from mce_llm.eval.saved_runs import SavedRun


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_directory, solution_file):
    output = tmp_path_factory.mktemp("runs") / "ce" / "likelihood"
    config = LikelihoodConfig(
        model=str(model_directory), data=str(solution_file), output=str(output), prompt="plain"
    )
    return output, evaluate_likelihood(config)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run" / "likelihood")


def change(path, edit):
    """Edit a JSON file, or the lines of one, in place."""
    if path.suffix == ".jsonl":
        content = [json.loads(line) for line in path.read_text().splitlines()]
        edit(content)
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))


def test_what_is_read(finished, folder):
    run = SavedLikelihood.read(folder)
    summary = finished[1]
    assert run.summary["groups"] == summary.groups
    assert run.summary["calibration_error"] == summary.calibration_error
    assert len(run.items) == len(run.first_samples) == summary.n == 7
    assert run.remarks == ()
    assert run.name == "run"
    assert set(run.identity) == {*COMPARABLE_LIKELIHOODS, "model"}


def test_a_figure_of_the_summary_that_is_not_that_of_the_items(folder):
    change(folder / "summary.json", lambda summary: summary["groups"]["numbers"].update(nats_per_token=0.5))
    change(folder / "summary.json", lambda summary: summary["calibration_error"].update(all=None))
    run = SavedLikelihood.read(folder)
    assert [remark.partition(";")[0] for remark in run.remarks] == [
        "summary.json says 0.5 nats per token of numbers",
        "summary.json says a calibration error of None for all",
    ]
    assert run.summary["groups"]["numbers"]["nats_per_token"] != 0.5


def test_an_edited_reference_is_told(folder):
    change(folder / "items.jsonl", lambda items: items[2].update(gold="7"))
    (remark,) = SavedLikelihood.read(folder).remarks
    assert "questions or references in items.jsonl are not those of the evaluation" in remark


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda items: items.pop(), "summary.json counts 7 questions, items.jsonl has 6 lines"),
        (lambda items: items.reverse(), "line 1, must be index 0, and is index 6"),
        (lambda items: items[1].pop("gold"), "line 2: lacks gold"),
        (lambda items: items[1].update(index=-1), "line 2: index must be a whole number"),
        (lambda items: items[1]["groups"].pop("words"), "line 2: groups must be an object with all, numbers"),
        (lambda items: items[1]["groups"]["all"].update(nats=None), "line 2: groups must be an object"),
        (
            lambda items: items[1]["groups"]["all"].update(nats=float("nan")),
            "line 2: no JSON .ValueError: NaN is no number of JSON",
        ),
        (lambda items: items[1]["groups"]["all"].update(nats=10**400), "line 2: groups must be an object"),
        (
            lambda items: items[1]["groups"]["numbers"].update(nats=0.5),
            "line 2: nats of numbers and of words add up to",
        ),
        (
            lambda items: items[1]["groups"]["all"].update(entropy=0.5),
            "line 2: entropy of numbers and of words add up to .* not to the 0.5 of all",
        ),
        (
            lambda items: items[1]["groups"]["answer"].update(nats=1e4),
            "line 2: 10000 nats of answer are more than the",
        ),
        (
            lambda items: items[1]["groups"]["results"].update(entropy=1e4),
            "line 2: 10000 entropy of results are more than the .* of numbers",
        ),
        (
            lambda items: (
                items[1]["calibration"]["all"].update(top1=[0] * 15)
                or items[1]["groups"]["all"].update(top1=1)
                or items[1]["groups"]["numbers"].update(top1=0)
                or items[1]["groups"]["results"].update(top1=0)
                or items[1]["groups"]["answer"].update(top1=0)
                or items[1]["calibration"]["numbers"].update(top1=[0] * 15)
                or items[1]["groups"]["words"].update(top1=1)
            ),
            "line 2: calibration of 0 top1 in all, which has 1",
        ),
        (
            lambda items: items[1]["groups"]["all"].update(tokens=1),
            r"numbers and \d+ words are not the 1 tokens",
        ),
        (
            lambda items: items[1]["groups"]["results"].update(tokens=999),
            "999 results are more than the",
        ),
        (lambda items: items[1]["groups"]["answer"].update(tokens=999), "999 tokens of the answer are more"),
        (lambda items: items[1]["groups"]["all"].update(top1=999), r"999 top1 of \d+ tokens in all"),
        (
            lambda items: items[1]["calibration"]["all"]["tokens"].pop(),
            "calibration must be an object with numbers, all",
        ),
        (
            lambda items: items[1]["calibration"]["all"]["tokens"].__setitem__(0, 500),
            r"line 2: calibration of \d+ tokens in all, which has",
        ),
        (
            lambda items: items[1]["calibration"]["all"]["top1"].__setitem__(0, 500),
            "calibration of all with more top1 or confidence than tokens",
        ),
    ],
)
def test_lines_that_cannot_be(edit, message, folder):
    change(folder / "items.jsonl", edit)
    with pytest.raises(EvaluationError, match=message):
        SavedLikelihood.read(folder)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("summary.json", lambda content: content.update(n="7"), "summary.json: n cannot be '7'"),
        ("summary.json", lambda content: content.pop("hashes"), "does not say with which prompt, data"),
        (
            "summary.json",
            lambda content: content.update(task="gsm8k"),
            "task must be likelihood, got 'gsm8k'",
        ),
        (
            "config.json",
            lambda content: content.update(task="gsm8k"),
            "'likelihood' in summary.json and 'gsm8k'",
        ),
        ("config.json", lambda content: content.pop("dtype"), "config.json: dtype cannot be None"),
        ("config.json", lambda content: content["hashes"].update(scoring="x"), "different hashes of scoring"),
    ],
)
def test_files_that_cannot_be(name, edit, message, folder):
    change(folder / name, edit)
    with pytest.raises(EvaluationError, match=message):
        SavedLikelihood.read(folder)


def test_no_evaluation(tmp_path, folder):
    with pytest.raises(EvaluationError, match="there is no such directory"):
        SavedLikelihood.read(tmp_path / "nothing")
    (folder / "summary.json").unlink()
    (folder / "items.jsonl").rename(folder / "items.done.jsonl")
    with pytest.raises(EvaluationError, match="is not finished; the command that began it goes on with it"):
        SavedLikelihood.read(folder)


def test_it_is_no_evaluation_of_answers(folder):
    with pytest.raises(
        EvaluationError, match="holds likelihoods of reference solutions, and answers are asked for"
    ):
        SavedRun.read(folder)


def test_reading_needs_neither_torch_nor_datasets():
    code = "import sys, mce_llm.eval.likelihood.saved; print({'torch', 'datasets', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
