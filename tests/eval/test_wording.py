"""One number, one rounding."""

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.eval.comparing.verdicts import points
from mce_llm.eval.wording import accuracy_text, bounds_text, hundredfold, share_text


@pytest.mark.parametrize(
    ("share", "decimals", "text"),
    [
        (0.0625, 1, "6.3"),
        (0.0625, 2, "6.25"),
        (-0.0625, 1, "-6.3"),
        (0.0, 1, "0.0"),
        (-1e-9, 1, "0.0"),
        (1, 1, "100.0"),
    ],
)
def test_half_goes_away_from_zero(share, decimals, text):
    assert hundredfold(share, decimals) == text


@given(st.integers(1, 3000), st.data())
def test_shares_of_whole_numbers_are_rounded_as_people_do(n, data):
    right = data.draw(st.integers(0, n))
    exact = Fraction(100 * right, n)
    expected = (Decimal(exact.numerator * 10) / exact.denominator).quantize(Decimal(1), ROUND_HALF_UP) / 10
    assert hundredfold(right / n) == f"{expected:.1f}"
    assert (
        hundredfold((right - n) / n + 1) == f"{expected:.1f}"
    )  # and the noise of arithmetic changes nothing


def test_texts():
    assert (share_text(0.0625), accuracy_text(0.0625)) == ("6.3 %", "6.25 %")
    assert bounds_text((0.0625, 0.5)) == "6.3 to 50.0 %"
    assert (points(0.0625), points(-0.0625, sign=True), points(0.0004), points(1e-7)) == (
        "6.3",
        "−6.3",
        "0.04",
        "0.0",
    )
