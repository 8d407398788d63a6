"""Numbers differ however close they are, and expressions where one value differs."""

import pytest

pytest.importorskip("latex2sympy2_extended")

import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.eval.judging.symbolic_equality import equal, match_in_any_order, undefined, vanishes

x, y = sympy.symbols("x y", real=True)
TINY = sympy.Rational(1, 10**150)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1 / sympy.factorial(52), 1 / sympy.factorial(51)),
        (sympy.exp(-200), sympy.exp(-201)),
        (sympy.exp(-10000), sympy.Integer(0)),
        (sympy.log(1 + TINY), sympy.log(1 + TINY / 10)),  # evaluates to 0 at any low precision
        (sympy.log(1 + TINY), sympy.Integer(0)),
        (sympy.sin(TINY), TINY),
        (sympy.sqrt(2) + TINY, sympy.sqrt(2)),
        (sympy.sin(1 + TINY), sympy.sin(1)),
        (sympy.Integer(2) ** 1000 + 1, sympy.Integer(2) ** 1000),
        (sympy.sqrt(10**60 + 1), sympy.Integer(10) ** 30),
        (x + sympy.exp(-200), x + sympy.exp(-201)),
        (x * sympy.exp(-200), x * sympy.exp(-201)),
        (sympy.exp(sympy.pi * sympy.sqrt(163)), sympy.Integer(262537412640768744)),
        (sympy.sqrt(x**2), x),
        (sympy.sqrt(x - 5), sympy.sqrt(x - 6)),
        (sympy.log(x**2), 2 * sympy.log(x)),
        (sympy.zoo, sympy.zoo),
        (sympy.nan, sympy.nan),
        (sympy.oo, -sympy.oo),
    ],
)
def test_different(one, other):
    assert not equal(one, other)
    assert not equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (sympy.log(1 + TINY), sympy.log(10**150 + 1) - 150 * sympy.log(10)),
        (sympy.sqrt(2) + sympy.sqrt(3), sympy.sqrt(5 + 2 * sympy.sqrt(6))),
        (sympy.exp(sympy.I * sympy.pi / 3), sympy.Rational(1, 2) + sympy.sqrt(3) * sympy.I / 2),
        (4 * sympy.atan(sympy.Rational(1, 5)) - sympy.atan(sympy.Rational(1, 239)), sympy.pi / 4),
        (sympy.Pow(-8, sympy.Rational(1, 3)), sympy.Integer(-2)),
        (sympy.sqrt(x**2), abs(x)),
        (sympy.sqrt(1 / x), 1 / sympy.sqrt(x)),
        ((x + 1) ** 2, x**2 + 2 * x + 1),
        (sympy.Max(x, y), (x + y + abs(x - y)) / 2),
        (sympy.factorial(x), x * sympy.factorial(x - 1)),
        (sympy.Function("f")(x) + 1, 1 + sympy.Function("f")(x)),
        (sympy.oo, sympy.oo),
    ],
)
def test_equal(one, other):
    assert equal(one, other)
    assert equal(other, one)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(-400, 400),
    st.integers(-50, 50),
    st.sampled_from([sympy.exp, sympy.sin, sympy.atan, sympy.sqrt]),
)
def test_a_relative_difference_of_any_size_is_seen(exponent, size, function):
    value = function(sympy.Integer(size) ** 2 + 1) * sympy.Integer(10) ** exponent
    assert not equal(value, value + sympy.Integer(10) ** (exponent - 300))
    assert equal(value, sympy.Rational(1, 3) * value + sympy.Rational(2, 3) * value)


def test_vanishes_refuses_what_is_undefined():
    with pytest.raises(ArithmeticError):
        vanishes(sympy.zoo, 50)
    assert undefined(1 + sympy.oo * sympy.I)


def test_match_in_any_order():
    assert match_in_any_order([1, 2, 2], [2, 1, 2], int.__eq__)
    assert not match_in_any_order([1, 2, 2], [2, 1, 1], int.__eq__)
    assert not match_in_any_order([1], [1, 1], int.__eq__)
