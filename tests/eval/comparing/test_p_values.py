"""p-values from intervals, and Holm's correction against the procedure as he gives it."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from mce_llm.eval.comparing.p_values import holm, least_alpha
from mce_llm.eval.intervals import Interval


def z_interval(estimate):
    """The normal interval of an estimate whose standard error is 1."""

    def interval(confidence):
        half = stats.norm.ppf((1 + confidence) / 2)
        return Interval(estimate - half, estimate + half)

    return interval


@given(st.floats(-6, 6).filter(bool))
def test_the_inverse_of_an_interval_is_its_test(estimate):
    assert least_alpha(estimate, z_interval(estimate)) == pytest.approx(
        2 * stats.norm.sf(abs(estimate)), rel=1e-5, abs=2e-12
    )


def test_an_estimate_of_0_and_an_interval_that_always_holds_it():
    assert least_alpha(0.0, z_interval(0.0)) == 1.0
    assert least_alpha(0.1, lambda confidence: Interval(-1.0, 1.0)) == 1.0


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.2], [0.2]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holm(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


def rejected(p_values, level):
    """Holm's procedure as he gives it: from the smallest p-value on, at level α / (m − k), until one is not rejected."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found = set()
    for k, place in enumerate(order):
        if p_values[place] > level / (len(p_values) - k):
            break
        found.add(place)
    return found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_adjusted_p_values_reject_what_holm_s_procedure_does(p_values, level):
    found = holm(p_values)
    assume(all(abs(q - level) > 1e-9 for q in found))
    assert {place for place, q in enumerate(found) if q <= level} == rejected(p_values, level)
    assert all(p <= q <= min(1, len(p_values) * p) + 1e-12 for p, q in zip(p_values, found, strict=True))
