"""`mce-llm compare`: its tables, its JSON, and what bad input gets."""

import json
import re

import numpy as np
import pytest

from helpers.evaluations import outcomes, write_run
from mce_llm.commands.compare import read_arrangement
from mce_llm.eval.comparing.comparison import compare_runs


@pytest.fixture
def one_pair(tmp_path):
    """The folders of A and B: 69.2 % and 72.3 % of 1,319 questions."""
    a, b = outcomes(800, 113, 154, 252)
    text = [
        "Mark's [bold]garden[/] has\n  {} rows. How many of {}?".format("many " * 20, k) for k in range(1319)
    ]
    return [
        write_run(tmp_path / "runs" / name / "gsm8k", row, model=name, questions=text)
        for name, row in (("ce", a), ("mce", b))
    ]


@pytest.fixture
def three_pairs(tmp_path):
    generator = np.random.default_rng(0)
    return [
        write_run(
            tmp_path / f"seed{s}" / name / "gsm8k", generator.random(300) < accuracy, model=f"{name}{s}"
        )
        for s in range(3)
        for name, accuracy in (("a-rather-long-name-of-a-run-with-cross-entropy", 0.6), ("mce", 0.7))
    ]


def by_arm(folders):
    """A B A2 B2 … as the command line takes them."""
    return ["--baseline", *folders[::2], "--arm", *folders[1::2]]


def shown(result):
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_one_pair(command, one_pair):
    text = shown(command("compare", *one_pair, columns=80))
    for part in (
        "GSM8K, 1,319 questions",
        "913/1,319",
        "69.22 %",
        "72.33 %",
        "66.7 to 71.7 %",
        "+3.1 points, 95 % interval +0.7 to +5.5",
        "Tango's score interval, for these two trained models",
        "exact McNemar p = 0.014",
        "both right 800",
        "only A right 113",
        "only B right 154",
        "both wrong 252",
        "3.5 points, found with probability 80 %",
        "(here: 1,319)",
        "154 questions won by B (the first 5)",
        "113 questions lost by B (the first 5)",
        "Mark's [bold]garden[/] has",  # text of others is no markup
        "It is one training seed each: nothing here knows of other seeds.",
    ):
        assert part in text, part
    assert text.count("Mark's") == 10


def test_several_pairs(command, three_pairs):
    text = shown(command("compare", *by_arm(three_pairs), columns=80))
    for part in (
        "B minus A, pair by pair",
        "B minus A over 3 training seeds",
        "seed to seed sd",
        "plain bootstrap",
        "3 drawn from 3 show 2/3 of their variance",
        "by position: the first of the baseline with the first of each arm",
        "pairs of seeds",
        "on average over 3 training seeds",
    ):
        assert part in text, part
    assert "nothing here knows of other seeds" not in text
    assert re.search(r"\d+ questions won by B \(the first 5\) ─+ no. won, lost A B question", text)


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("folders", ["one_pair", "three_pairs"])
def test_it_fits_its_terminal(command, request, folders, columns):
    result = command("compare", *by_arm(request.getfixturevalue(folders)), "--list", 3, columns=columns)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= columns
    if columns >= 80:  # nothing but the questions is cut
        cut = [line for line in result.stdout.splitlines() if "…" in line and "Mark's" not in line]
        assert not [line for line in cut if "A1 with B1, A2 with B2, …" not in line]


@pytest.mark.parametrize(("listed", "count"), [(0, 0), (2, 4), (1000, 267)])
def test_questions_are_listed_as_asked(command, one_pair, listed, count):
    assert command("compare", *one_pair, "--list", listed).stdout.count("Mark's") == count


def test_json_is_the_whole_comparison(command, one_pair, tmp_path):
    """On stdout and in a file the same, with every question and nothing of the tables."""
    place = tmp_path / "new" / "comparison.json"
    result = command("compare", *one_pair, "--json", "--output", place, "--resamples", 200, "--seed", 3)
    found = json.loads(result.stdout)
    assert found == json.loads(place.read_text())
    arrangement = read_arrangement(one_pair)
    pairs = arrangement.pairs(arrangement.arms[0])
    expected = compare_runs(pairs, resamples=200, seed=3, pairing="as given").to_dict()
    assert found == json.loads(json.dumps(expected))
    assert len(found["questions"]) == 267


def test_options_reach_the_statistics(command, one_pair):
    usual = json.loads(command("compare", *one_pair, "--json").stdout)
    other = json.loads(command("compare", *one_pair, "--json", "--confidence", 0.9, "--seed", 1).stdout)
    assert (usual["confidence"], usual["resamples"], other["confidence"]) == (0.95, 10_000, 0.9)
    assert other["interval"][0] > usual["interval"][0]
    drawn = [
        json.loads(command("compare", *one_pair, "--json", "--seed", n).stdout)["bootstrap"] for n in (1, 2)
    ]
    assert drawn[0] != drawn[1]


def test_other_settings_are_refused_unless_allowed(command, tmp_path):
    a, b = outcomes(60, 5, 20, 15)
    folders = [write_run(tmp_path / "ce", a), write_run(tmp_path / "mce", b, model="b", prompt="plain")]
    refused = command("compare", *folders)
    assert refused.exit_code == 2
    assert not refused.stdout
    assert refused.stderr.startswith(
        "error: mce cannot be compared with ce: they differ in prompt (name: 'metamath'"
    )
    assert len(refused.stderr.splitlines()) == 1
    allowed = command("compare", *folders, "--allow-differences")
    assert shown(allowed).startswith(
        "WARNING: mce and ce differ in prompt (name: 'metamath' in ce, 'plain' in mce)"
    )
    recorded = json.loads(command("compare", *folders, "--allow-differences", "--json").stdout)
    assert recorded["mismatches"][0]["details"] == ["name: 'metamath' in ce, 'plain' in mce"]
    assert recorded["notes"][0]["level"] == "warning"


def test_several_samples(command, tmp_path):
    generator = np.random.default_rng(0)
    folders = [
        write_run(tmp_path / f"{s}{name}", generator.random((60, 4)) < accuracy, model=f"{s}{name}")
        for s in range(2)
        for name, accuracy in (("ce", 0.5), ("mce", 0.7))
    ]
    one = shown(command("compare", *folders[:2], columns=80))
    assert "up to 4 samples each" in one
    assert "exact sign-flip test p" in one
    assert "Student's t over questions" in one
    assert "both right" not in one
    two = shown(command("compare", *by_arm(folders), columns=80))
    assert "scores differ" in two
    assert "two training seeds hardly show how much seeds vary" in two


def test_runs_without_any_difference(command, tmp_path):
    a, _ = outcomes(60, 0, 0, 40)
    folders = [write_run(tmp_path / name, a, model=name) for name in ("ce", "mce")]
    text = shown(command("compare", *folders))
    assert "none: too few questions are answered unlike" in text
    assert "won by B" not in text
    assert "needed" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a baseline and what is held against it, got 0 folders"),
        (["{a}"], "a baseline and what is held against it, got 1 folder$"),
        (["{a}", "{b}", "{a}"], "is given 2 times"),
        (["{a}", "{a}"], "is given 2 times"),
        (["{a}", "{place}/none"], "none: there is no such directory; give the --output of an evaluation"),
        (["{a}", "{place}"], "holds no evaluation: it has no summary.json"),
        (["{a}", "{place}/unfinished"], "is not finished; the command that began it goes on with it"),
        (["{a}", "{b}", "--confidence", "95"], "confidence must be strictly between 0 and 1, got 95"),
        (["{a}", "{b}", "--resamples", "5"], "resamples must be at least 100, got 5"),
        (["{a}", "{b}", "--list", "-1"], "Invalid value"),
        (["{a}", "{b}", "--output", "{place}/file/x.json"], "cannot write to"),
    ],
)
def test_bad_input(command, tmp_path, words, message):
    """One explanation, exit code 2, no traceback."""
    a, b = outcomes(6, 1, 2, 1)
    paths = {
        "a": write_run(tmp_path / "a", a),
        "b": write_run(tmp_path / "b", b, model="b"),
        "place": tmp_path,
    }
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "items.rank0.jsonl").write_text("{}\n")
    (tmp_path / "file").write_text("")
    result = command("compare", *(word.format(**paths) for word in words), columns=200)
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.replace("│", " ").split()))
    assert "Traceback" not in result.output
