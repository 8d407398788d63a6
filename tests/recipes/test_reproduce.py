"""The whole study as a user starts it: what it plans, what it refuses, and once from end to end in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.scripts import ROOT, load_script
from helpers.waiting import HANG
from mce_llm.data import load_examples
from mce_llm.eval.answers import extract_answer, gold_expression, gold_value, is_correct

toy_study = load_script("recipes/toy_study.py")

SCRIPT = ROOT / "recipes" / "reproduce_gsm8k.sh"


def run(*arguments, timeout=HANG, **environment):
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment},
    )


def test_the_plan_is_the_whole_study():
    result = run("--plan")
    assert result.returncode == 0, result.stderr
    commands = [line for line in result.stdout.splitlines() if not line.startswith("==")]
    assert len(commands) == 6 + 12 + 2 + 1
    for seed in "123":
        for arm in ("ce", "mce"):
            (training,) = [line for line in commands if f"--output_dir runs/study/seed{seed}/{arm} " in line]
            assert f"llemma7b_metamath_{arm}.yaml --seed {seed}" in training
            for task, script in (("gsm8k", "gsm8k"), ("math", "hendrycks_math")):
                (evaluation,) = [
                    line
                    for line in commands
                    if f"eval/{script}.py" in line and f"--model runs/study/seed{seed}/{arm} " in line
                ]
                assert (
                    f"--output runs/study/seed{seed}/{arm}/{task} --data {task} --prompt metamath"
                    in evaluation
                )
    compared = [line for line in commands if " compare " in line]
    evaluators = {
        word for line in commands for word in line.split() if "/eval/" in word and word.endswith(".py")
    }
    assert len(evaluators) == 2
    assert all(Path(word).is_file() for word in evaluators)
    folders = compared[0].split(" compare ")[1].split(" --output")[0].split()
    assert folders == [f"runs/study/seed{seed}/{arm}/gsm8k" for seed in "123" for arm in ("ce", "mce")]


def test_options_reach_the_commands():
    result = run(
        "--plan",
        "--seeds",
        "7 8",
        "--output",
        "x",
        "--num_processes",
        4,
        "--batch_size",
        9,
        "--",
        "--max_steps",
        5,
    )
    trainings = [line for line in result.stdout.splitlines() if "finetune.py" in line]
    assert len(trainings) == 4
    assert all("--num_processes 4" in line and line.endswith("--max_steps 5") for line in trainings)
    evaluations = [line for line in result.stdout.splitlines() if "eval/hendrycks_math.py" in line]
    assert all("--num_processes 4" in line and "--batch_size 9" in line for line in evaluations)
    assert "x/seed8/mce/math" in evaluations[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1"], "unknown option --seed"),
        (["--seeds"], "--seeds needs a value"),
        (["--seeds", "1,2"], "--seeds must be numbers with spaces between them, got '1,2'"),
        (["--seeds", "1 2 1"], "--seeds names a seed twice"),
        (["--batch_size", "0"], "--batch_size must be a positive number, got '0'"),
        (["--num_processes", "two"], "--num_processes must be a positive number"),
        (["--train_config", "nothing.yaml"], "nothing.yaml: no such file"),
        (["--toy", "--num_processes", "2"], "--toy runs on one process"),
    ],
)
def test_mistakes(arguments, message, tmp_path):
    result = run(*arguments, "--output", tmp_path / "out") if arguments[-1] != "--seeds" else run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_python_without_the_package_is_named(tmp_path):
    assert "there is no /nowhere/python" in run("--plan", PYTHON="/nowhere/python").stderr


def test_help_says_what_comes_out():
    printed = run("--help").stdout
    for word in ("--toy", "--seeds", "report/index.html", "--plan"):
        assert word in printed


def test_toy_data_is_judged_as_the_real_one(tmp_path):
    toy_study.make_data(tmp_path)
    numbers, expressions = (load_examples(str(tmp_path / f"{name}.jsonl")) for name in ("gsm8k", "math"))
    assert len(numbers) == len(expressions) == toy_study.NUM_QUESTIONS
    assert not set(numbers["question"]) & set(expressions["question"])
    for row in expressions:
        assert extract_answer(row["response"], style="math").found_by in ("answer_is", "boxed")
        assert is_correct(row["response"], row["answer"], style="math")
        assert gold_expression(row["answer"]) == str(gold_value(row["answer"]))
    trained = {row["question"] for row in load_examples(str(tmp_path / "train.jsonl"))}
    assert not trained & {*numbers["question"], *expressions["question"]}


@pytest.mark.slow
def test_from_end_to_end_and_again(tmp_path):
    """Two seeds of a few steps; then the same command finds everything done."""
    arguments = ["--toy", "--output", tmp_path, "--seeds", "1 2", "--", "--max_steps", 2, "--eval_steps", 1]
    result = run(*arguments, timeout=1500)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for task in ("gsm8k", "math"):
        compared = json.loads((tmp_path / f"{task}.json").read_text())
        assert len(compared["pairs"]) == 2
        assert "95 %" in (tmp_path / f"{task}.txt").read_text()
    page = (tmp_path / "report" / "index.html").read_text()
    assert "GSM8K" in page
    assert "MATH" in page
    before = (tmp_path / "seed1" / "ce" / "gsm8k" / "items.jsonl").stat().st_mtime_ns
    again = run(*arguments, timeout=900)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("finished before") == 5
    assert (tmp_path / "seed1" / "ce" / "gsm8k" / "items.jsonl").stat().st_mtime_ns == before
