"""Majority votes and pass@k, against enumeration."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.eval.tasks import GSM8K, MATH
from mce_llm.eval.votes import majority, pass_at, pass_at_k


def question(gold, *answers):
    return [{"predicted": answer, "correct": answer == gold} for answer in answers]


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_mean_over_all_choices(case):
    n, correct, k = case
    answers = [True] * correct + [False] * (n - correct)
    choices = list(itertools.combinations(answers, k))
    assert pass_at_k(n, correct, k) == pytest.approx(float(Fraction(sum(map(any, choices)), len(choices))))


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_out_of_range(n, correct, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, correct, k)


def test_which_k():
    assert list(pass_at([1], 1)) == ["1"]
    assert list(pass_at([1, 2], 6)) == ["1", "2", "4", "6"]
    assert list(pass_at([0], 8)) == ["1", "2", "4", "8"]
    assert pass_at([3, 0], 6)["1"] == pytest.approx(0.25)
    assert pass_at([3, 0], 6)["6"] == 0.5


@pytest.mark.parametrize(
    ("questions", "accuracy", "ties", "no_votes"),
    [
        ([question("5", "5", "5", "7")], 1.0, 0, 0),
        ([question("5", "5", "7", "7")], 0.0, 0, 0),
        ([question("5", "5", "7", None)], 0.5, 1, 0),  # None does not vote, and the tie is half right
        ([question("5", "5", "7", "9")], 1 / 3, 1, 0),
        ([question("5", "7", "9", None)], 0.0, 1, 0),
        ([question("5", None, None, None)], 0.0, 0, 1),
        ([question("5", "5", None, None), question("3", "4", "4", "3")], 0.5, 0, 0),
    ],
)
def test_majority(questions, accuracy, ties, no_votes):
    found = majority(questions, GSM8K.vote)
    assert found.accuracy == pytest.approx(accuracy)
    assert (found.k, found.ties, found.no_votes) == (3, ties, no_votes)


def test_votes_are_for_values_not_for_strings():
    assert MATH.vote([r"\frac{1}{2}", "0.5", "1", r"\frac12", None]) == [[0, 1, 3], [2]]
    assert GSM8K.vote(["1/2", "1", "1/2"]) == [[0, 2], [1]]
