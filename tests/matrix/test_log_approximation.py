import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.matrix.log_approximation import ApproximationError, log_approximation


def value(approximation, x):
    return approximation.constant - sum(
        w * s / (x + s) for s, w in zip(approximation.shifts, approximation.weights, strict=True)
    )


def slope(approximation, x):
    return sum(w * s / (x + s) ** 2 for s, w in zip(approximation.shifts, approximation.weights, strict=True))


@given(
    exponent=st.floats(0, 7.5),
    place=st.floats(-0.5, 0.5),
    tolerance=st.sampled_from([1e-3, 1e-5, 1e-8]),
)
@settings(max_examples=150, deadline=None)
def test_errors_stay_below_the_tolerance(exponent, place, tolerance):
    """Anywhere in [1/√κ, √κ], for values and slopes."""
    condition = 10**exponent
    approximation = log_approximation(condition, tolerance)
    x = condition**place
    assert abs(value(approximation, x) - math.log(x)) <= tolerance
    assert (
        abs(x * slope(approximation, x) - 1) <= 1.01 * tolerance
    )  # the largest one may be between grid points
    assert approximation.condition >= condition * (1 - 1e-9)
    assert approximation.condition <= 10**0.51 * max(condition, 1.01)


@given(exponent=st.floats(0.5, 6), places=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)))
@settings(max_examples=50, deadline=None)
def test_divided_differences_inherit_the_bound_on_the_slopes(exponent, places):
    """So the Fréchet derivative is good to the tolerance in every entry of the eigenbasis."""
    condition = 10**exponent
    approximation = log_approximation(condition, 1e-5)
    x, y = (condition**p for p in places)
    if abs(x - y) < 1e-3 * x:
        return
    exact = (math.log(x) - math.log(y)) / (x - y)
    found = sum(
        w * s / ((x + s) * (y + s)) for s, w in zip(approximation.shifts, approximation.weights, strict=True)
    )
    assert found == pytest.approx(exact, rel=1.01e-5)


@pytest.mark.parametrize(("tolerance", "poles"), [(1e-5, 13), (1e-8, 19)])
def test_few_poles_are_enough(tolerance, poles):
    approximation = log_approximation(1e5, tolerance)
    assert len(approximation.shifts) <= poles
    assert min(approximation.shifts) > 0
    assert min(approximation.weights) > 0


@pytest.mark.parametrize(
    ("condition", "message"),
    [(math.inf, "is inf"), (math.nan, "is nan"), (1e14, "no 32 poles approximate the logarithm to 1e-08")],
)
def test_what_cannot_be_approximated_is_refused(condition, message):
    with pytest.raises(ApproximationError, match=message):
        log_approximation(condition, 1e-8)


def test_default_device_and_dtype_of_the_caller_do_not_matter():
    plain = log_approximation(50.0, 1.0e-6)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        with torch.device("meta"):
            other = log_approximation(50.0, 1.001e-6)  # not the one that was kept
    finally:
        torch.set_default_dtype(before)
    assert other.shifts == pytest.approx(plain.shifts, rel=1e-9)
