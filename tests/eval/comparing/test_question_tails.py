"""The studentised bootstrap of a mean: its laws, its tails, and what it is needed for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mce_llm.eval.comparing.question_tails import QuestionTails
from mce_llm.eval.intervals import IntervalError


def skewed(seed=0, n=200):
    return np.random.default_rng(seed).lognormal(0, 1, n)


@settings(max_examples=25)
@given(st.integers(5, 80), st.integers(0, 2**32 - 1), st.floats(0.6, 0.9999))
def test_other_order_other_scale_other_sign(n, seed, upper):
    values = skewed(seed, n)
    down, up = QuestionTails.of(values, 400).factors(upper)
    shuffled = np.random.default_rng(seed).permutation(values)
    assert QuestionTails.of(shuffled, 400).factors(upper) == pytest.approx((down, up), rel=1e-9)
    assert QuestionTails.of(3 * values + 7, 400).factors(upper) == pytest.approx((down, up), rel=1e-6)
    assert QuestionTails.of(-values, 400).factors(upper) == pytest.approx((up, down), rel=1e-6)


@settings(max_examples=25)
@given(st.integers(2, 60), st.integers(0, 2**32 - 1), st.floats(0.55, 0.99999), st.floats(0.55, 0.99999))
def test_factors_grow_and_lie_between_student_s(n, seed, one, other):
    tails = QuestionTails.of(skewed(seed, n), 300)
    low, high = sorted((one, other))
    for here, further in zip(tails.factors(low), tails.factors(high), strict=True):
        assert stats.t.ppf(low, n - 1) <= here * (1 + 1e-9)
        assert here <= stats.t.ppf(low, 1) * (1 + 1e-9)
        assert here <= further * (1 + 1e-9)


def test_a_resample_by_hand():
    """Of two values every resample is one of them twice, or both: a third of a bootstrap without a standard error."""
    tails = QuestionTails.of(np.array([0.0, 1.0]), 1000)
    assert set(np.unique(tails.statistics)) <= {-np.inf, 0.0, np.inf}
    assert np.isinf(tails.statistics).mean() == pytest.approx(0.5, abs=0.05)
    # They say that nothing is known, which is what Student's quantile of one degree of freedom says.
    assert tails.factors(0.975) == pytest.approx([stats.t.ppf(0.975, 1)] * 2)


def test_quantiles_of_a_symmetric_form_are_student_s():
    values = np.random.default_rng(3).normal(size=500)
    down, up = QuestionTails.of(values, 40_000).factors(0.975)
    # A quantile of 40,000 drawings is known to about 0.02.
    assert (down, up) == pytest.approx((stats.t.ppf(0.975, 499),) * 2, abs=0.08)


def test_a_long_tail_above_reaches_further_up():
    """The mean of a sample that happened to miss the tail is too low, and looks more certain than it is."""
    down, up = QuestionTails.of(skewed(n=60)).factors(0.975)
    assert up > 1.15 * down
    assert down == pytest.approx(stats.t.ppf(0.975, 59))


def test_equal_values_have_no_tails():
    assert QuestionTails.of(np.full(10, 0.3)) is None
    assert QuestionTails.of(np.array([0.3])) is None


def test_too_few_resamples():
    with pytest.raises(IntervalError, match="resamples must be at least 100, got 50"):
        QuestionTails.of(skewed(), 50)
