"""Wilson's interval against scipy, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mce_llm.eval.intervals import IntervalError, wilson_interval


@given(
    st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.01, 0.999)
)
def test_agrees_with_scipy(counts, confidence):
    successes, n = counts
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    # Both are a few dozen float64 operations; their quantiles differ by 1e-15 or so.
    assert wilson_interval(successes, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_gsm8k_at_seventy_percent():
    low, high = wilson_interval(923, 1319)
    assert (round(low, 4), round(high, 4)) == (0.6745, 0.7239)


@pytest.mark.parametrize(("successes", "end"), [(0, 0), (10, 1)])
def test_the_ends_are_exact(successes, end):
    interval = wilson_interval(successes, 10)
    assert interval[end] == end
    assert 0 < interval[1 - end] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "n must be at least 1, got 0"),
        ((1, -3), "n must be at least 1, got -3"),
        ((11, 10), "successes must be between 0 and n = 10, got 11"),
        ((-1, 10), "successes must be between 0 and n = 10, got -1"),
        ((1.5, 10), "successes must be an integer, got 1.5"),
        ((True, 10), "successes must be an integer, got True"),
        ((1, "10"), "n must be an integer, got '10'"),
        ((1, 10, 1.0), "confidence must be strictly between 0 and 1, got 1.0; 0.95"),
        ((1, 10, 95), "confidence must be strictly between 0 and 1, got 95"),
        ((1, 10, float("nan")), "confidence must be strictly between 0 and 1, got nan"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(IntervalError, match=message):
        wilson_interval(*arguments)
