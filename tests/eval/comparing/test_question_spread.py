"""One seed: Student's interval and test as scipy has them, floors and bounds, power against simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mce_llm.eval.comparing.paired import least_half_width
from mce_llm.eval.comparing.question_spread import QuestionSpread
from mce_llm.eval.comparing.question_tails import QuestionTails
from mce_llm.eval.intervals import IntervalError


def row(seed=0, n=150, mean=0.1):
    return np.random.default_rng(seed).normal(mean, 1.0, n)


@given(st.integers(2, 200), st.integers(0, 2**32 - 1), st.floats(0.5, 0.999))
def test_student_s_interval_and_test(n, seed, confidence):
    values = row(seed, n)
    spread = QuestionSpread.of(values, bound=None, step=0.0)
    expected = stats.ttest_1samp(values, 0)
    assert spread.interval(confidence) == pytest.approx(
        tuple(expected.confidence_interval(confidence)), abs=1e-9
    )
    assert spread.p_value() == pytest.approx(expected.pvalue, rel=1e-4, abs=1e-8)


def test_bounds_and_steps():
    values = np.array([1.0, 1.0, 0.0])
    assert QuestionSpread.of(values).interval().high == 1.0
    assert QuestionSpread.of(values, bound=None).interval().high > 1.0
    same = np.zeros(100)
    half = least_half_width(100, 0.95)
    assert QuestionSpread.of(same).interval() == (-half, half)
    assert QuestionSpread.of(same, step=0.1).interval() == pytest.approx((-half / 10, half / 10))
    assert QuestionSpread.of(same, bound=None, step=0.0).interval() == (0.0, 0.0)
    assert QuestionSpread.of(same, bound=None, step=0.0).p_value() == 1.0


def test_tails_widen_one_side():
    values = np.random.default_rng(0).lognormal(0, 1, 60)
    plain = QuestionSpread.of(values, bound=None, step=0.0).interval()
    wide = QuestionSpread.of(values, bound=None, step=0.0, tails=QuestionTails.of(values)).interval()
    assert wide.high > plain.high
    assert wide.low <= plain.low


def test_what_is_found_four_times_out_of_five():
    n, generator = 200, np.random.default_rng(5)
    known = QuestionSpread(n, 0.0, 1 / np.sqrt(n), bound=None, step=0.0)
    least = known.smallest_detectable_difference()
    found = [
        QuestionSpread.of(row(generator.integers(2**32), n, least), bound=None, step=0.0).interval().low > 0
        for _ in range(1500)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.026)  # two and a half standard errors


def test_how_many_questions_it_would_take():
    seen = QuestionSpread(200, 0.05, 1 / np.sqrt(200), bound=None, step=0.0)
    needed = seen.questions_needed()
    grown = QuestionSpread(needed, 0.05, 1 / np.sqrt(needed), bound=None, step=0.0)
    assert grown.smallest_detectable_difference() == pytest.approx(0.05, rel=0.01)
    assert QuestionSpread(200, 0.0, 0.1).questions_needed() is None
    assert QuestionSpread(200, 1e-9, 1.0, bound=None).questions_needed() is None


def test_what_cannot_be_found():
    assert QuestionSpread(50, 0.0, 0.0, bound=None, step=0.0).smallest_detectable_difference() is None
    assert QuestionSpread(3, 0.0, 0.5).smallest_detectable_difference() is None  # beyond 1


@pytest.mark.parametrize("values", [np.zeros(1), np.zeros((2, 2)), np.zeros(0)])
def test_too_little(values):
    with pytest.raises(IntervalError, match="needs a row of 2 of them at least, got the shape"):
        QuestionSpread.of(values)
