"""Lines of `items.jsonl` are judged anew, and what is no answer is refused by its line."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.evaluations import write_run
from mce_llm.eval.answers import judge
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.saved_items import read_items
from mce_llm.eval.saved_runs import SavedRun
from mce_llm.eval.tasks import GSM8K, MATH

FINE = {
    "index": 0,
    "sample": 0,
    "question": "What is 1 + 1?",
    "gold": "#### 2",
    "response": "The answer is: 2",
    "predicted": "2",
    "found_by": "answer_is",
    "correct": True,
    "finished": "eos",
    "new_tokens": 7,
}


def edit(folder, place=0, **values):
    """Change fields of one line; `...` takes one out."""
    lines = (folder / "items.jsonl").read_text().splitlines()
    item = {**json.loads(lines[place]), **values}
    lines[place] = json.dumps({name: value for name, value in item.items() if value is not ...})
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "ce", [True, False, True, False])


def test_a_file_as_it_was_written(folder):
    run = SavedRun.read(folder)
    assert (run.summary["correct"], run.scores, run.remarks) == (2, [1, 0, 1, 0], ())


@pytest.mark.parametrize("edits", [{"correct": True}, {"response": "The answer is: 2"}])
def test_an_edited_verdict_or_answer_is_judged_by_its_text(folder, edits):
    """A verdict that was changed goes back; an answer that was changed counts as it is now."""
    edit(folder, 1, **edits)
    run = SavedRun.read(folder)
    right = 3 if "response" in edits else 2
    assert (run.summary["correct"], run.summary["accuracy"]) == (right, right / 4)
    assert sum(run.summary["correct_by"].values()) == right
    (told, *others) = run.remarks
    assert told.startswith("1 of 4 verdicts in items.jsonl is not what this version judges")
    written, judged = ("wrong", "right") if "response" in edits else ("right", "wrong")
    assert f"no. 2: written {written}, judged {judged}" in told
    assert bool(others) == ("response" in edits)
    if others:
        assert "says an accuracy of 50.00 %; the answers give 75.00 %" in others[0]


def test_a_summary_that_says_something_else(folder):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "accuracy": 0.99, "correct": 4}))
    run = SavedRun.read(folder)
    assert (run.summary["accuracy"], run.summary["correct"]) == (0.5, 2)
    assert run.remarks == (
        "summary.json says an accuracy of 99.00 %; the answers give 50.00 %, which is used",
    )


def test_questions_that_were_edited_are_told(tmp_path):
    from mce_llm.eval.fingerprints import fingerprint

    asked = [[f"How many are {k} and {k}?", f"#### {2 * k}"] for k in range(2)]
    folder = write_run(tmp_path / "ce", [True, True], hashes={"data": fingerprint(asked)})
    assert SavedRun.read(folder).remarks == ()
    edit(folder, 1, gold="#### 3")
    remarks = SavedRun.read(folder).remarks
    assert any("are not those of the evaluation" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"correct": "false"}, "line 2: correct must be true or false, got 'false'"),
        ({"correct": 0}, "line 2: correct must be true or false, got 0"),
        ({"correct": ...}, "line 2: lacks correct"),
        ({"gold": ..., "response": ...}, "line 2: lacks gold, response"),
        ({"response": None}, "line 2: response must be a text, got None"),
        ({"question": ["a"]}, r"line 2: question must be a text, got \['a'\]"),
        ({"predicted": 5}, "line 2: predicted must be a text or null, got 5"),
        ({"found_by": None}, "line 2: found_by must be a text"),
        ({"finished": "later"}, "line 2: finished must be one of eos, stop, length, got 'later'"),
        ({"finished": ["eos"]}, "line 2: finished must be one of"),
        ({"new_tokens": -1}, "line 2: new_tokens must be a whole number of at least 0, got -1"),
        ({"new_tokens": 1.5}, "line 2: new_tokens must be a whole number"),
        ({"index": True}, "line 2: index must be a whole number of at least 0, got True"),
        ({"sample": "0"}, "line 2: sample must be a whole number"),
        ({"gold": "no number"}, "line 2: gold cannot be judged by"),
        ({"index": 3}, "are not of one run"),
    ],
)
def test_lines_that_are_no_answers(folder, values, message):
    edit(folder, 1, **values)
    with pytest.raises(EvaluationError, match=message):
        SavedRun.read(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no JSON"), ("[1]", "must be a JSON object"), ("{", "no JSON"), ("null", "must be a JSON object")],
)
def test_lines_that_are_no_objects(folder, text, message):
    with (folder / "items.jsonl").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(EvaluationError, match=f"line 5: {message}"):
        SavedRun.read(folder)


def test_samples_of_one_question_share_it(tmp_path):
    folder = write_run(tmp_path / "ce", [[True, False], [True, True]])
    edit(folder, 1, gold="#### 7")
    with pytest.raises(EvaluationError, match="line 2: gold is another than in the first sample"):
        SavedRun.read(folder)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2),
)


@given(st.dictionaries(st.sampled_from(sorted(FINE)), ANYTHING, max_size=3))
def test_whatever_a_line_holds_it_is_judged_or_refused(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    path.write_text(json.dumps({**FINE, **values}) + "\n")
    problem, items = None, ()
    try:
        items = read_items(path, GSM8K).items
    except EvaluationError as error:
        problem = str(error)
    assert (problem is None) == bool(items)
    assert problem is None or "line 1: " in problem
    for item in items:
        assert item["correct"] is judge(item["response"], item["gold"]).correct


def test_math_is_judged_as_math(tmp_path):
    pytest.importorskip("math_verify")
    path = tmp_path / "items.jsonl"
    item = {**FINE, "gold": r"\frac{1}{2}", "response": r"so $\boxed{0.5}$", "correct": False}
    path.write_text(json.dumps(item) + "\n")
    (rejudged,) = read_items(path, MATH).rejudged
    assert (rejudged.written, rejudged.judged) == (False, True)


def test_without_math_verify_it_is_said(tmp_path, monkeypatch):
    from dataclasses import replace

    import mce_llm.eval.saved_items as saved_items

    def missing():
        raise EvaluationError("math-verify is not installed; pip install 'mce-llm[eval]'")

    monkeypatch.setitem(saved_items.TASKS, "math", replace(MATH, check_ready=missing))
    folder = write_run(tmp_path / "ce", [True], task="math")
    with pytest.raises(EvaluationError, match="math-verify is not installed"):
        SavedRun.read(folder)


def test_a_task_that_is_not_known(folder):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "task": "chess"}))
    with pytest.raises(EvaluationError, match="task must be one of gsm8k, math, got 'chess'"):
        SavedRun.read(folder)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("summary.json", {"n": "4"}, "summary.json: n cannot be '4'"),
        ("summary.json", {"num_samples": 0}, "summary.json: num_samples cannot be 0"),
        ("summary.json", {"tokens_per_second": None}, "tokens_per_second cannot be None"),
        ("config.json", {"settings": []}, r"config.json: settings cannot be \[\]"),
        ("config.json", {"dtype": None}, "config.json: dtype cannot be None"),
        ("config.json", {"hashes": "x"}, "does not say with which prompt"),
    ],
)
def test_records_without_what_is_read_of_them(folder, name, values, message):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))
    with pytest.raises(EvaluationError, match=message):
        SavedRun.read(folder)


def test_thousands_of_answers_are_judged_in_seconds(tmp_path):
    rows = [[k % 3 == 0, k % 2 == 0, True, False] for k in range(1319)]
    folder = write_run(tmp_path / "ce", rows, responses=[f"{k} plus {k}. " * 30 for k in range(1319)])
    started = time.process_time()
    assert len(SavedRun.read(folder).items) == 4 * 1319
    assert time.process_time() - started < 20  # about 2 on one core of 2024
