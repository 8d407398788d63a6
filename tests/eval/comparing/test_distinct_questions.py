"""Copies of a question are one observation."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.evaluations import outcomes
from mce_llm.eval.comparing.comparison import compare_runs
from mce_llm.eval.comparing.distinct_questions import DistinctQuestions, question_key
from mce_llm.eval.comparing.paired import in_whole_units, sign_flip_test
from mce_llm.eval.errors import EvaluationError


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How many?", " How\n many?\t", True),
        ("How many?", "How\u00a0many?", True),
        ("How many?", "How\u200b many?\ufeff", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("f(A)", "f(a)", False),
        ("What is 3²?", "What is 32?", False),
        ("What is 3?", "What is 3", False),
        ("Tom has 3.", "Tom has 4.", False),
    ],
)
def test_what_a_copy_is(one, other, same):
    assert (question_key(one) == question_key(other)) is same


def test_twenty_copies_of_one_question_are_one(make):
    texts = ["How many are 2 and 2?"] * 20
    a, b = outcomes(0, 0, 6, 14)
    with pytest.raises(EvaluationError, match=r"there is one question \(20 copies of it\)"):
        compare_runs([(make("ce", a, questions=texts), make("mce", b, questions=texts))])
    found = compare_runs(
        [(make("x", [False] * 20, questions=texts), make("y", [True] * 20, questions=texts))]
    )
    assert (found.n, found.asked) == (1, 20)
    assert found.p_value == 1
    assert found.interval.low < 0 < found.interval.high
    (note,) = [note for note in found.notes if "different" in note.text]
    assert note.level == "warning"
    assert (
        "20 questions were asked, and 1 of them is different: 1 is there more than once, up to 20 times"
        in note.text
    )
    assert "1 question, 100.0 % of them answered unlike" in found.verdict
    assert found.pairs[0].b.right == "1 of 1"


def test_copies_change_nothing_but_the_note(make):
    """Twice the same file gives what it gives once."""
    a, b = outcomes(30, 4, 12, 14)
    texts = [f"Question {k}?" for k in range(60)]
    once = compare_runs([(make("a", a, questions=texts), make("b", b, questions=texts))])
    twice = compare_runs([(make("c", a + a, questions=texts * 2), make("d", b + b, questions=texts * 2))])
    assert (once.n, once.asked, twice.n, twice.asked) == (60, 60, 60, 120)
    assert (once.interval, once.p_value, once.verdict) == (twice.interval, twice.p_value, twice.verdict)
    assert once.pairs[0].counts == twice.pairs[0].counts
    assert once.pairs[0].a.interval == twice.pairs[0].a.interval
    assert [outcome.copies for outcome in twice.questions] == [2] * 16
    assert not once.notes


def test_copies_that_differ_count_with_their_mean(make):
    texts = ["one?", "one?", "two?", "three?"]
    found = compare_runs(
        [
            (
                make("a", [True, False, False, False], questions=texts),
                make("b", [True, True, True, False], questions=texts),
            )
        ]
    )
    (pair,) = found.pairs
    assert pair.counts is None
    assert pair.a.accuracy == pytest.approx(0.5 / 3)
    assert pair.b.accuracy == pytest.approx(2 / 3)
    assert pair.difference == found.difference == pytest.approx(0.5)
    assert pair.a.right == "0.5 of 3"
    assert pair.test == "exact sign-flip test"


def test_copies_with_different_references_are_told(make):
    run = make("a", [True] * 4, questions=["one?", "one?", "two?", "two?"])
    assert DistinctQuestions.of(run).disagreeing == 2
    assert "Copies of 2 of them have different references" in DistinctQuestions.of(run).told()


def test_twenty_copies_do_not_make_findings(make):
    """False findings at 5 %, where each of 12 questions is there 20 times and both methods are alike."""
    generator = np.random.default_rng(3)
    texts = [f"Question {k}?" for k in range(12) for _ in range(20)]
    found = 0
    for trial in range(40):
        a, b = (np.repeat(generator.random(12) < 0.5, 20) for _ in range(2))
        comparison = compare_runs(
            [(make(f"{trial}/a", a, questions=texts), make(f"{trial}/b", b, questions=texts))], resamples=100
        )
        assert comparison.n == 12
        found += comparison.p_value <= 0.05
    assert found <= 5  # of 40 at 5 %: more has a probability of 1.4 %; by lines, nearly all would be findings


@given(st.lists(st.fractions(-1, 1, max_denominator=12), min_size=1, max_size=30))
def test_units_are_exact_where_they_can_be(differences):
    whole = in_whole_units(differences)
    scale = {Fraction(w) / d for w, d in zip(whole, differences, strict=True) if d}
    assert len(scale) <= 1
    assert all((w == 0) == (d == 0) for w, d in zip(whole, differences, strict=True))


def test_units_that_would_take_too_long_are_rounded_for_both_signs_alike():
    primes = [101, 103, 107, 109, 113, 127, 131, 137, 139, 149] * 40
    differences = [Fraction(k % 7 - 3, p) for k, p in enumerate(primes)]
    whole = in_whole_units(differences)
    assert in_whole_units([-d for d in differences]) == [-w for w in whole]
    assert 0 < sign_flip_test(whole) <= 1
