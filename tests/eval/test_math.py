"""MATH from the command line and from Python: symbolic judging, votes, and what `gsm8k.py` would not do."""

import json
import subprocess
import sys

import pytest

from helpers.scripts import ROOT
from mce_llm.data import DataError, write_jsonl
from mce_llm.eval.engines.decoding import Generation
from mce_llm.eval.math import MathConfig, evaluate_math, main
from mce_llm.eval.tasks import GSM8K, MATH

SCRIPT = ROOT / "eval" / "hendrycks_math.py"


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    golds = [r"\frac{1}{2}", "x^2+1", "(3, 4)", r"\text{even}", "18"]
    rows = [
        {
            "problem": f"What is it, number {n}?",
            "solution": f"So it is $\\boxed{{{gold}}}$.",
            "level": "1",
            "type": "t",
        }
        for n, gold in enumerate(golds)
    ]
    return write_jsonl(rows, tmp_path_factory.mktemp("math") / "math.jsonl")


def options(model, problems, output, **changed):
    values = {"model": str(model), "data": str(problems), "output": str(output), "prompt": "plain"}
    return {**values, "max_new_tokens": 16, "batch_size": 4, **changed}


@pytest.mark.parametrize(
    ("gold", "response", "predicted", "correct"),
    [
        (r"\frac{1}{2}", r"We get $\boxed{\dfrac12}$.", r"\dfrac12", True),
        (r"\frac{1}{2}", "The answer is: 0.5", "0.5", True),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", r"\frac{1}{3}", False),
        ("x^2+1", r"\boxed{1+x^2}. Question: next? \boxed{7}", "1+x^2", True),
        ("(3, 4)", r"\boxed{(4,3)}", "(4,3)", False),
        ("18", "Nothing is said", None, False),
    ],
)
def test_judging(gold, response, predicted, correct):
    item = MATH.judge({"question": "q", "answer": gold}, Generation(3, 1, response, 9, "eos"))
    assert (item["predicted"], item["correct"]) == (predicted, correct)
    assert (item["index"], item["sample"], item["gold"], item["new_tokens"]) == (3, 1, gold, 9)


def test_a_whole_run_with_votes(tmp_path, model_directory, problems):
    config = MathConfig(
        **options(model_directory, problems, tmp_path / "out", temperature=1.0, num_samples=4, top_p=0.9)
    )
    summary = evaluate_math(config)
    assert (summary.task, summary.n, summary.num_samples) == ("math", 5, 4)
    with (tmp_path / "out" / "items.jsonl").open() as file:
        items = [json.loads(line) for line in file]
    assert [(item["index"], item["sample"]) for item in items] == [(n, k) for n in range(5) for k in range(4)]
    assert [item["gold"] for item in items[::4]] == [r"\frac{1}{2}", "x^2+1", "(3, 4)", r"\text{even}", "18"]
    assert summary.majority is not None
    assert summary.majority["k"] == 4
    assert summary.pass_at is not None
    assert list(summary.pass_at) == ["1", "2", "4"]
    assert summary.pass_at["1"] == summary.accuracy
    assert evaluate_math(config) == summary  # read back


def test_the_right_answers_are_right(tmp_path, model_directory, problems):
    """The model's own answers as references: all of those that have one are judged right."""
    evaluate_math(MathConfig(**options(model_directory, problems, tmp_path / "first", max_new_tokens=60)))
    with (tmp_path / "first" / "items.jsonl").open() as file:
        items = [json.loads(line) for line in file]
    rows = [
        {"question": item["question"], "response": "", "answer": item["predicted"]}
        for item in items
        if item["predicted"]
    ]
    assert rows
    rows = [{**row, "response": row["answer"]} for row in rows]
    data = write_jsonl(rows, tmp_path / "own.jsonl")
    summary = evaluate_math(MathConfig(**options(model_directory, data, tmp_path / "own", max_new_tokens=60)))
    assert summary.correct == len(rows)


def test_defaults_are_those_of_math(capsys):
    assert MathConfig(model="m", output="o").max_new_tokens == 2048
    assert MathConfig(model="m", output="o").data == "math"
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "(default: 2048)" in printed
    assert "(default: math)" in printed


def test_as_a_plain_script(tmp_path, model_directory, problems):
    """Its name is that of a module of Python; what needs that one must still find it."""
    arguments = [
        f"--{key}={value}" for key, value in options(model_directory, problems, tmp_path / "o").items()
    ]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        cwd=SCRIPT.parent,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "MATH:" in result.stdout


def test_gsm8k_refuses_references_that_are_no_numbers(problems):
    with pytest.raises(
        DataError, match=r"3 of 5 records have no reference answer that GSM8K can(?s:.*)line 2:"
    ):
        GSM8K.load(str(problems))
    assert len(MATH.load(str(problems)).rows) == 5
