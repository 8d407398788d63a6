import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from mce_llm.data.errors import DataError
from mce_llm.data.synthetic import SPLITS, ArithmeticProblems, generate_problems, problem_split

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


def signature(problem):
    """The kind and the numbers of a problem, read from its text alone."""
    operators = "".join(STEP.findall(problem["answer"])[i][1] for i in range(problem["answer"].count("=")))
    return operators, tuple(sorted(map(int, re.findall(r"\d+", problem["question"]))))


@pytest.mark.parametrize("max_number", [10, 20, 100])
def test_solutions_are_right_and_tell_the_question(max_number):
    for problem in generate_problems(500, max_number=max_number):
        *lines, final = problem["answer"].split("\n")
        value, used = None, []
        for line in lines:
            left, operator, right, result = STEP.fullmatch(line).groups()
            assert value is None or int(left) == value
            used += [int(right)] if used else [int(left), int(right)]
            value = OPERATIONS[operator](int(left), int(right))
            assert int(result) == value
            assert 0 <= value <= 999
        assert final == f"#### {value}"
        assert sorted(used) == sorted(map(int, re.findall(r"\d+", problem["question"])))
        assert max(used) <= max_number
        assert 13 <= len(problem["question"].split()) <= 25


def test_no_question_twice_and_many_kinds():
    problems = generate_problems(3000)
    assert len({p["question"] for p in problems}) == 3000
    kinds = Counter(signature(p)[0] for p in problems)
    assert set(kinds) == {"+", "-", "*", "++", "+-", "-+", "*+", "*-"}
    assert min(kinds.values()) > 150


def test_splits_never_share_a_kind_with_the_same_numbers():
    # Whatever the seeds: the splits are drawn here with different ones.
    found = {
        split: {signature(p) for p in generate_problems(2000, split=split, seed=seed)}
        for seed, split in enumerate(SPLITS)
    }
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]


def test_order_of_numbers_does_not_move_a_problem():
    assert problem_split("add", (7, 5)) == problem_split("add", (5, 7))


def test_one_tenth_is_for_testing():
    counts = Counter(problem_split("add", (a, b)) for a in range(100) for b in range(a + 1))
    assert counts["test"] / counts.total() == pytest.approx(0.1, abs=0.02)
    assert counts["train"] / counts.total() == pytest.approx(0.8, abs=0.02)


def test_smaller_count_is_the_beginning_of_a_larger_one_and_seeds_differ():
    assert generate_problems(50) == generate_problems(100)[:50]
    assert generate_problems(50, seed=1) != generate_problems(50)


def test_same_problems_in_every_process():
    code = (
        "import json; from mce_llm.data.synthetic import generate_problems; "
        "print(json.dumps(generate_problems(20, split='test', seed=3)))"
    )
    environment = {"PYTHONHASHSEED": "123"}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True
    ).stdout
    assert json.loads(output) == generate_problems(20, split="test", seed=3)


def test_same_problems_in_every_version():
    # Recorded once. If this changes, results on these problems no longer compare with older ones.
    text = json.dumps(generate_problems(200, seed=7), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "1b613b00ce59f318"


@pytest.mark.parametrize(("steps", "lines"), [((1,), {1}), ((2,), {2}), ((1, 2), {1, 2})])
def test_steps(steps, lines):
    assert {p["answer"].count("=") for p in generate_problems(200, steps=steps)} == lines


@pytest.fixture
def _few_words(monkeypatch):
    monkeypatch.setattr("mce_llm.data.synthetic._NAMES", ("Anna", "Ben"))
    monkeypatch.setattr("mce_llm.data.synthetic._OBJECTS", ("apples",))


@pytest.mark.usefixtures("_few_words")
def test_the_stream_ends_when_nothing_new_is_left():
    source = ArithmeticProblems(max_number=10, steps=(1,))
    problems = {split: list(source.stream(split)) for split in SPLITS}
    for split in SPLITS:
        assert len({p["question"] for p in problems[split]}) == len(problems[split]) > 20
    # Sums of 2..10 and 1..10: every one is told in one split or another.
    sums = {signature(p) for found in problems.values() for p in found if "+" in p["answer"]}
    assert len(sums) == 54


@pytest.mark.usefixtures("_few_words")
def test_asking_for_more_than_there_are():
    with pytest.raises(
        DataError, match=r"only \d+ different questions for split 'test', asked for 9999; raise"
    ):
        generate_problems(9999, split="test", max_number=10, steps=(1,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"split": "tset"}, r"unknown split 'tset' \(did you mean 'test'\?\)"),
        ({"max_number": 5}, "max_number must be between 10 and 100, got 5"),
        ({"max_number": 5000}, "got 5000"),
        ({"steps": (3,)}, r"steps must be \(1,\), \(2,\) or \(1, 2\), got \(3,\)"),
        ({"steps": ()}, "steps must be"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(DataError, match=message):
        generate_problems(**({"count": 5} | options))
