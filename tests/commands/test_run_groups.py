"""`--baseline A A2 --arm NAME B B2` with as many folders as a shell finds."""

import json

import numpy as np
import pytest

from helpers.evaluations import write_run
from helpers.trainings import write_training


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three arms of two seeds, with their records, in the current folder."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, weight, accuracy in (("ce", 0, 0.5), ("emo", 0.3, 0.5), ("mce", 1.0, 0.75)):
        for seed in (1, 2):
            folder = tmp_path / f"{name}-{seed}"
            write_training(folder, recipe={"matrix_weight": weight, "seed": seed, "dataset": "d"})
            write_run(folder / "gsm8k", generator.random(200) < accuracy, model=str(folder))
            write_run(
                folder / "svamp",
                generator.random(90) < accuracy,
                model=str(folder),
                data="/data/svamp/test.jsonl",
                questions=[f"Of SVAMP {k}?" for k in range(90)],
            )
    return tmp_path


def found(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "words",
    [
        ["--baseline", "ce-1/gsm8k", "ce-2/gsm8k", "--arm", "new", "mce-2/gsm8k", "mce-1/gsm8k", "--json"],
        ["--json", "--arm=new", "mce-2/gsm8k", "mce-1/gsm8k", "--baseline=ce-1/gsm8k", "ce-2/gsm8k"],
        ["--baseline", "ce-1/gsm8k", "ce-2/gsm8k", "--json", "--arm", "new", "mce-1/gsm8k", "mce-2/gsm8k"],
    ],
)
def test_groups_in_any_place(command, runs, words):
    comparison = found(command("compare", *words))
    assert [(pair["a"]["label"], pair["b"]["label"]) for pair in comparison["pairs"]] == [
        ("ce-1", "mce-1"),
        ("ce-2", "mce-2"),
    ]
    assert comparison["name"] == "new"
    assert comparison["pairing"] == "by the seeds that the trainings recorded"


def test_the_order_of_a_shell(command, runs):
    comparison = found(command("compare", "ce-1/svamp", "ce-2/svamp", "mce-1/svamp", "mce-2/svamp", "--json"))
    assert [pair["b"]["label"] for pair in comparison["pairs"]] == ["mce-1", "mce-2"]
    assert comparison["title"] == "SVAMP"


def test_three_arms(command, runs):
    words = [
        "--baseline",
        "ce-1/gsm8k",
        "ce-2/gsm8k",
        "--arm",
        "emo-1/gsm8k",
        "emo-2/gsm8k",
        "--arm",
        "good one",
    ]
    words += ["mce-1/gsm8k", "mce-2/gsm8k"]
    arms = found(command("compare", *words, "--json"))["arms"]
    assert [arm["name"] for arm in arms] == ["emo", "good one"]
    text = " ".join(command("compare", *words, columns=120).stdout.split())
    for part in (
        "B: emo against A: ce",
        "C: good one against A: ce",
        "all 2 arms against A: ce",
        "C minus A over 2 training seeds",
        "95 % alone ┃ 95 % together ┃ p alone ┃ p (Holm)",
        "The probability of any false finding among 2 arms is at most 5 % (Holm).",
    ):
        assert part in text, part
    assert [
        arm["name"]
        for arm in found(command("compare", *sorted(map(str, runs.glob("*/gsm8k"))), "--json"))["arms"]
    ] == [
        "emo",
        "mce",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["ce-1/gsm8k", "--baseline", "ce-2/gsm8k", "--arm", "mce-1/gsm8k"],
            "beside --baseline and --arm no folders may stand",
        ),
        (["--baseline", "ce-1/gsm8k"], "--baseline needs --arm B B2 … beside it"),
        (["--arm", "ce-1/gsm8k"], "--arm needs --baseline A A2 … beside it"),
        (
            ["--baseline", "ce-1/gsm8k", "--baseline", "ce-2/gsm8k", "--arm", "mce-1/gsm8k"],
            "--baseline is given twice",
        ),
        (["--baseline", "ce-1/gsm8k", "--arm", "mce"], "--arm mce: there is no such directory"),
        (["--baseline", "ce-1/gsm8k", "--arm", "./mc/gsm8k"], "there is no such directory"),
        (
            ["--baseline", "ce-1/gsm8k", "ce-2/gsm8k", "--arm", "x", "mce-1/gsm8k"],
            "the baseline has 2 runs and the arms have 1",
        ),
        (["--baseline", "--arm", "mce-1/gsm8k"], "requires an argument"),
        (["--baseline", "ce-1/gsm8k", "--arms", "mce-1/gsm8k"], "No such option"),
    ],
)
@pytest.mark.parametrize("name", ["compare", "report"])
def test_groups_that_are_none(command, runs, name, words, message):
    result = command(name, *words, columns=300)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_report_of_three_arms_on_two_data_sets(command, runs):
    words = ["--baseline", "ce-1", "ce-2", "--arm", "emo", "emo-1", "emo-2", "--arm", "mce", "mce-1", "mce-2"]
    result = command("report", *words, "--output", "out", columns=400)
    assert result.exit_code == 0, result.output
    for title in ("GSM8K: B, emo: ", "GSM8K: C, mce: ", "SVAMP: B, emo: ", "SVAMP: C, mce: "):
        assert title in result.output
    page = (runs / "out" / "index.html").read_text()
    assert (
        "mce-llm report --baseline ce-1 ce-2 --arm emo emo-1 emo-2 --arm mce mce-1 mce-2 --output out" in page
    )
    assert (runs / "out" / "svamp-c-accuracy.png").is_file()


def test_what_a_terminal_would_obey_is_shown(command, tmp_path):
    """In questions, answers, paths and settings, in tables, JSON and messages."""
    evil = "\x1b[2J\x9b31m\u202e[red]x[/red]\r"
    runs = [
        write_run(
            tmp_path / f"{name}\x1b[31m",
            right,
            model=f"{name}{evil}",
            data=f"data{evil}",
            questions=[f"{k}{evil}" for k in range(4)],
        )
        for name, right in (("ce", [True, False, False, True]), ("mce", [True, True, True, False]))
    ]
    for words in (
        ["compare", *runs],
        ["compare", *runs, "--json"],
        ["report", *runs, "--output", tmp_path / "o"],
    ):
        result = command(*words, columns=200)
        assert result.exit_code == 0, result.output
        assert not set(result.output) & set("\x1b\x9b\u202e\r")
    assert "\\x1b[2J\\x9b31m\\u202e[red]x[/red]\\r" in command("compare", *runs, columns=200).stdout
    refused = command("compare", runs[0], tmp_path / f"none{evil}")
    assert refused.exit_code == 2
    assert "none\\x1b[2J\\x9b31m\\u202e[red]x[/red]\\r: there is no such directory" in refused.stderr
    assert not set(refused.stderr) & set("\x1b\x9b\u202e\r")
