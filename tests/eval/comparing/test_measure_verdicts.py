"""Numbers of measures as words, and how an interval lies to what matters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.eval.comparing.measure_verdicts import (
    amount,
    finding_of,
    interval_words,
    value_text,
    weight_of,
)
from mce_llm.eval.comparing.measures import ACCURACY, measure_named
from mce_llm.eval.intervals import Interval

NATS, ENTROPY = measure_named("all.nats"), measure_named("all.entropy")
LESS_BIAS = measure_named("all.ece_debiased")


@pytest.mark.parametrize(
    ("measure", "value", "text"),
    [
        (ACCURACY, 0.69219, "69.22 %"),
        (NATS, 1.47312, "1.4731"),
        (ENTROPY, 0.0, "0.0000"),
        (LESS_BIAS, -0.01294, "−1.29 %"),
        (LESS_BIAS, -1e-9, "0.00 %"),
    ],
)
def test_values(measure, value, text):
    assert value_text(measure, value) == text


@pytest.mark.parametrize(
    ("measure", "difference", "text"),
    [
        (ACCURACY, 0.031, "+3.1"),
        (ACCURACY, -0.0004, "−0.04"),
        (NATS, 0.01234, "+0.0123"),
        (NATS, -0.01234, "−0.0123"),
        (NATS, -0.0000123, "−1.2e-05"),
        (NATS, 0.0, "0.0000"),
    ],
)
def test_differences(measure, difference, text):
    assert amount(measure, difference, sign=True) == text
    assert amount(measure, difference) == text.removeprefix("+")


def test_intervals():
    assert interval_words(NATS, Interval(-0.02, 0.01)) == "−0.0200 to +0.0100"


@pytest.mark.parametrize(
    ("measure", "difference", "finding"),
    [
        (ACCURACY, 0.1, "better"),
        (ACCURACY, -0.1, "worse"),
        (NATS, -0.1, "better"),
        (NATS, 0.1, "worse"),
        (ENTROPY, 0.1, "higher"),
        (ENTROPY, -0.1, "lower"),
    ],
)
def test_findings(measure, difference, finding):
    assert finding_of(measure, difference, found=True) == finding
    assert finding_of(measure, difference, found=False) == "not told apart"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_weights(middle, half, smallest):
    interval = Interval(middle - half, middle + half)
    outside = interval.low >= smallest or interval.high <= -smallest
    inside = max(abs(interval.low), abs(interval.high)) < smallest
    expected = "matters" if outside else "too small to matter" if inside else "open"
    assert weight_of(interval, smallest) == expected
    assert weight_of(Interval(-interval.high, -interval.low), smallest) == expected  # either sign alike
    assert weight_of(interval, None) is None
