"""McNemar's test, Tango's interval and the sign-flip test against other computations of the same, and their laws."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, ttest_1samp

from mce_llm.eval.comparing.paired import (
    PairedCounts,
    least_half_width,
    mcnemar_exact,
    mean_interval,
    sign_flip_test,
    tango_interval,
)
from mce_llm.eval.intervals import IntervalError

Z = NormalDist().inv_cdf(0.975)
CONFIDENCES = st.floats(0.5, 0.999)


@st.composite
def tables(draw, most=400):
    """only_a, only_b and n, with counts at and near 0 and n more often than chance would have it."""
    n = draw(st.integers(1, most))
    only_a = draw(st.one_of(st.sampled_from([0, min(1, n)]), st.integers(0, n)))
    only_b = draw(st.one_of(st.sampled_from([0, n - only_a]), st.integers(0, n - only_a)))
    return only_a, only_b, n


def test_counts():
    a = [True, True, False, False, False, True]
    b = [True, False, True, True, False, True]
    counts = PairedCounts.of(a, b)
    assert counts == PairedCounts(both=2, only_a=1, only_b=2, neither=1)
    assert (counts.n, counts.discordant, counts.difference) == (6, 3, 1 / 6)
    with pytest.raises(ValueError, match="shorter"):
        PairedCounts.of([True, False], [True])


# -- McNemar ---------------------------------------------------------------------------------------------------------


def exact_by_integers(only_a, only_b):
    m = only_a + only_b
    return min(1.0, 2 * sum(math.comb(m, k) for k in range(min(only_a, only_b) + 1)) / 2**m)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_against_whole_numbers(only_a, only_b):
    # The sum is exact; scipy's incomplete beta function is good to 1e-13 or so.
    assert mcnemar_exact(only_a, only_b) == pytest.approx(exact_by_integers(only_a, only_b), rel=1e-11)
    assert mcnemar_exact(only_a, only_b) == mcnemar_exact(only_b, only_a)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 50), st.integers(0, 50))
def test_mcnemar_agrees_with_statsmodels(only_a, only_b, both, neither):
    contingency_tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    found = contingency_tables.mcnemar([[both, only_a], [only_b, neither]], exact=True)
    # At equal counts statsmodels gives twice a tail that holds more than half, cut at 1.
    assert mcnemar_exact(only_a, only_b) == pytest.approx(found.pvalue, rel=1e-9)


def test_mcnemar_with_large_counts():
    assert mcnemar_exact(100_000, 101_000) == pytest.approx(binomtest(100_000, 201_000).pvalue, rel=1e-9)
    assert 0 < mcnemar_exact(49_000, 51_000) < 1e-9
    assert mcnemar_exact(10**5, 10**5) == 1


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(0, 0, 1.0), (0, 1, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (1, 0, 1.0)]
)
def test_mcnemar_by_hand(only_a, only_b, p):
    assert mcnemar_exact(only_a, only_b) == p


@given(st.integers(1, 120))
def test_mcnemar_falls_with_imbalance(discordant):
    p_values = [mcnemar_exact(few, discordant - few) for few in range(discordant // 2 + 1)]
    assert p_values == sorted(p_values)


def test_mcnemar_keeps_its_level():
    """Under equality it rejects in at most 5 % of cases, summed over all outcomes."""
    for m in (5, 20, 111):
        rejected = sum(math.comb(m, k) for k in range(m + 1) if mcnemar_exact(k, m - k) <= 0.05) / 2**m
        assert rejected <= 0.05
    assert rejected > 0.02  # at 111 it is not the test that rejects nothing


# -- Tango -----------------------------------------------------------------------------------------------------------


def score_statistic(only_a, only_b, n, delta):
    """Tango's statistic with the constrained maximum found by a numeric search over P(A alone)."""
    counts = np.array([only_b, only_a, n - only_a - only_b])

    def minus_log_likelihood(q):
        chances = np.array([q + delta, q, 1 - 2 * q - delta])
        if (chances < 0).any():
            return math.inf
        seen = counts > 0
        if (chances[seen] <= 0).any():
            return math.inf
        return -(counts[seen] * np.log(chances[seen])).sum()

    low, high = max(0.0, -delta), (1 - delta) / 2
    inner = minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    q = min((low, high, inner.x), key=minus_log_likelihood)
    variance = n * (2 * q + delta - delta**2)
    return (only_b - only_a - n * delta) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("only_a", "only_b", "n"),
    [
        (112, 153, 1319),
        (3, 10, 50),
        (1, 9, 20),
        (0, 7, 40),
        (7, 0, 40),
        (5, 5, 11),
        (2, 1, 3),
        (40, 2, 60),
        (0, 1, 500),
    ],
)
def test_tango_against_a_numeric_maximum(only_a, only_b, n):
    low, high = tango_interval(only_a, only_b, n)
    # At the bounds the statistic is the normal quantile. The search knows q to about 1e-8.
    assert score_statistic(only_a, only_b, n, low) == pytest.approx(Z, abs=1e-5)
    assert score_statistic(only_a, only_b, n, high) == pytest.approx(-Z, abs=1e-5)


@given(tables(), CONFIDENCES)
def test_tango_is_mirrored_when_a_and_b_change_places(counts, confidence):
    only_a, only_b, n = counts
    low, high = tango_interval(only_a, only_b, n, confidence)
    assert tango_interval(only_b, only_a, n, confidence) == (-high, -low)


@given(tables(), CONFIDENCES)
def test_tango_holds_the_estimate_and_grows_with_confidence(counts, confidence):
    only_a, only_b, n = counts
    low, high = tango_interval(*counts, confidence)
    assert -1 <= low <= (only_b - only_a) / n <= high <= 1
    assert low < high
    wider = tango_interval(*counts, (1 + confidence) / 2)
    assert wider.low <= low
    assert high <= wider.high


@given(st.integers(1, 100_000), CONFIDENCES)
def test_tango_without_discordant_questions(n, confidence):
    """Both bounds have a closed form there: z²/(n + z²)."""
    expected = least_half_width(n, confidence)
    # The bound solves nΔ/(1−Δ) = z², where rounding is relative to Δ.
    assert tango_interval(0, 0, n, confidence) == pytest.approx((-expected, expected), rel=1e-7)


@given(st.integers(1, 2000))
def test_tango_where_b_wins_every_question(n):
    low, high = tango_interval(0, n, n)
    assert high == 1
    # Nobody lost: (n − nΔ)² = z²·n(1−Δ)(1+Δ) ⇒ Δ = (n − z²)/(n + z²).
    assert low == pytest.approx((n - Z**2) / (n + Z**2), abs=1e-7)
    assert tango_interval(n, 0, n) == (-1, -low)


@given(st.integers(1000, 20_000), st.floats(0.05, 0.4), st.floats(-0.8, 0.8))
def test_tango_nears_the_usual_interval_for_many_questions(n, discordance, lean):
    only_b = round(n * discordance * (1 + lean) / 2)
    only_a = round(n * discordance * (1 - lean) / 2)
    difference = (only_b - only_a) / n
    half = Z * math.sqrt(((only_a + only_b) / n - difference**2) / n)
    # They differ in terms of order z²/n.
    expected = (difference - half, difference + half)
    assert tango_interval(only_a, only_b, n) == pytest.approx(expected, abs=5 * Z**2 / n)


def test_tango_and_the_test_agree_on_the_claim():
    """69.2 % against 72.3 %: it depends on how many questions are answered unlike."""
    assert tango_interval(112, 153, 1319).low > 0
    assert mcnemar_exact(112, 153) < 0.05
    assert tango_interval(230, 271, 1319).low < 0
    assert mcnemar_exact(230, 271) > 0.05


# -- several samples -------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_sign_flips_of_single_answers_are_mcnemar(only_a, only_b, alike):
    differences = [-1] * only_a + [1] * only_b + [0] * alike
    assert sign_flip_test(differences) == pytest.approx(mcnemar_exact(only_a, only_b), rel=1e-10)


@given(st.lists(st.integers(-6, 6), max_size=11))
def test_sign_flips_against_all_of_them(differences):
    seen = abs(sum(differences))
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in _signs(len(differences))]
    assert sign_flip_test(differences) == pytest.approx(
        np.mean([abs(total) >= seen for total in sums]), rel=1e-12
    )


def _signs(count):
    return itertools.product((-1, 1), repeat=count)


@given(st.lists(st.integers(-8, 8), max_size=80), st.randoms())
def test_sign_flips_know_no_order_and_no_side(differences, random):
    other = [-value for value in differences]
    random.shuffle(other)
    assert sign_flip_test(other) == sign_flip_test(differences)
    assert 0 < sign_flip_test(differences) <= 1


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).choice([-1, -0.5, 0, 0.25, 1], size=200)
    found = ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_interval(values, 0.9) == pytest.approx((found.low, found.high), rel=1e-12)


@pytest.mark.parametrize(("value", "interval"), [(0.0, (-0.0369935, 0.0369935)), (1.0, (0.9630065, 1.0))])
def test_the_interval_of_constant_differences_has_a_width(value, interval):
    assert mean_interval([value] * 100) == pytest.approx(interval, abs=1e-7)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (mcnemar_exact, (-1, 3), "only_a must be at least 0, got -1"),
        (mcnemar_exact, (1, 2.0), "only_b must be an integer, got 2.0"),
        (mcnemar_exact, (True, 2), "only_a must be an integer, got True"),
        (tango_interval, (1, 2, 0), "n must be at least 1, got 0"),
        (tango_interval, (3, 3, 5), r"only_a \+ only_b must be at most n = 5, got 3 \+ 3"),
        (tango_interval, (1, 2, "5"), "n must be an integer, got '5'"),
        (tango_interval, (1, 2, 5, 1.0), "confidence must be strictly between 0 and 1, got 1.0; 0.95"),
        (tango_interval, (1, 2, 5, 95), "confidence must be strictly between 0 and 1, got 95"),
        (tango_interval, (1, 2, 5, float("nan")), "got nan"),
        (mean_interval, ([0.5],), "needs 2 of them at least, got 1"),
        (mean_interval, ([0.5, 1.0], 0), "confidence must be strictly between 0 and 1, got 0"),
    ],
)
def test_bad_input(function, arguments, message):
    with pytest.raises(IntervalError, match=message):
        function(*arguments)
