"""Worked solutions as GSM8K has them, and how their tokens are divided by a reader that shares nothing with the package."""

import pytest

from mce_llm.data import write_jsonl

SOLUTIONS = [
    (
        "How many eggs?",
        "She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nThat is 9*2 = $<<9*2=18>>18.\n#### 18",
        "18",
    ),
    ("What of Tom?", "He has 1,234.5 + 0.5 =1,235 at 50%.\n#### 1,235", "1,235"),
    ("How many apples does very quickly Tom buy?", "Tom buys 3/4 of 8, so 8*3/4=6 apples.\n#### 6", "6"),
    ("How many?", "None.\n#### 0", "0"),
    ("And 5 very very long questions, how many apples are there then?", "x >= 5 gives -7.\n#### -7", "-7"),
    ("How much?", "It is\n\n 20% of 40, = 8 dollars.\n#### 8", "8"),
    ("Tom has 3 apples. How many?", "3 + 0 = 3\n#### 3", "3"),
]


@pytest.fixture(scope="session")
def solutions():
    return SOLUTIONS


@pytest.fixture(scope="session")
def solution_file(tmp_path_factory):
    rows = [{"question": question, "answer": solution} for question, solution, _ in SOLUTIONS]
    return write_jsonl(rows, tmp_path_factory.mktemp("solutions") / "test.jsonl")
