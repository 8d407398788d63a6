"""Several hundred endings as models write them, and GSM8K's answers in every form (benchmarks/answer_forms.py)."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from mce_llm.eval.answers import extract_answer, is_correct

ENDINGS = [
    json.loads(line)
    for line in (Path(__file__).parent / "answer_endings.jsonl").read_text(encoding="utf-8").splitlines()
]
BODY = (
    "Janet has 16 eggs and eats 3.\nThat leaves 16 - 3 - 4 = <<16-3-4=9>>9 eggs at $2 each, 9 * 2 = $777.\n"
)
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "answer_forms.py"
RECORDS = [
    {"question": "?", "answer": f"He has 3 * {n} = <<3*{n}=3>>3 and then more, in all {n}.\n#### {written}"}
    for n, written in (
        (18, "18"),
        (1080, "1,080"),
        (-5, "-5"),
        (4.5, "4.5"),
        (1234567, "1,234,567"),
        (0, "0"),
    )
]


@pytest.mark.parametrize("body", ["", BODY], ids=["alone", "behind a solution"])
def test_endings(body):
    wrong = []
    for item in ENDINGS:
        value = None if item["value"] is None else Fraction(item["value"])
        answer = extract_answer(body + item["ending"])
        if answer.value != value:
            wrong.append((item["ending"], item["value"], answer))
    assert wrong == []
    assert len(ENDINGS) > 450


@pytest.mark.parametrize(
    ("ending", "found_by"),
    [
        (
            "**Answer:** Janet makes $18 per day from 9 eggs.",
            "last_number",
        ),  # which of the two is the answer?
        ("#### 18\nWait, she sells 10. Correction:\n#### 20", "hash"),
        ("The answer is eighteen.", "answer_is"),
        ("\\fbox{18}", "boxed"),
        ("Answer: (B)", "a_colon"),
    ],
)
def test_how_an_ending_is_found(ending, found_by):
    assert extract_answer(BODY + ending).found_by == found_by


def test_a_second_hash_counts_only_where_the_first_is_taken_back():
    assert is_correct("#### 18\n\nTom has 3.\n#### 3", "18")
    assert is_correct("#### 18\nWait, that is wrong: she sells 10.\n#### 20", "20")


def run_benchmark(tmp_path, records, *options):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return subprocess.run(
        [sys.executable, str(BENCHMARK), "--data", str(path), *options],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_answer_forms_benchmark(tmp_path):
    result = run_benchmark(tmp_path, RECORDS * 4, "--texts", "8")
    assert result.returncode == 0, result.stdout
    assert "| `all` | 1536 | 1536 | 1536 | 1536 |" in result.stdout


def test_answer_forms_benchmark_sees_errors(tmp_path):
    # The number that its own solution marks with #### is not that of the record: each text is judged wrong.
    records = [{"question": "?", "answer": "It is 5.\n#### 5\nNo more.\n#### 18"}]
    result = run_benchmark(tmp_path, records, "--texts", "2")
    assert result.returncode == 1
    assert "reference 18, read Answer(value=Fraction(5, 1)" in result.stdout
