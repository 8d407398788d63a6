"""What the grammar would misread or drop is read as it stands or refused."""

import pytest

pytest.importorskip("latex2sympy2_extended")

import sympy

from mce_llm.eval.judging.symbolic_reading import Statement, UnreadableError, read

x = sympy.Symbol("x", real=True)


@pytest.mark.parametrize(
    ("latex", "value"),
    [
        ("2(3)", 6),
        ("(2)(3)", 6),
        ("-2(3)", -6),
        (r"2\binom{4}{2}", 12),
        (r"1\frac{1}{2}", sympy.Rational(3, 2)),
        (r"(1+2)\frac{1}{2}", sympy.Rational(3, 2)),
        ("2^(3-1)", 4),
        (r"\pi(2)", 2 * sympy.pi),
        ("i^2", -1),
        ("1.23456789012345678901234567890", sympy.Rational("1.23456789012345678901234567890")),
        ("6:4", sympy.Rational(3, 2)),
        (r"\log_2 8", 3),
        (r"\Gamma(5)", 24),
    ],
)
def test_value(latex, value):
    assert read(latex).doit() == value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I", "i"),
        ("X", "x"),
        ("x^T", "x"),
        ("f'(x)", "f(x)"),
        ("x'", "x"),
        (r"\gamma", r"\Gamma"),
        ("x_1", "x_2"),
    ],
)
def test_different_texts_are_different_expressions(one, other):
    assert read(one) != read(other)


@pytest.mark.parametrize(
    "latex",
    [
        "2516_8",
        "1 2",
        "5!!",
        r"1,2,\dots,n",
        r"\foo{3}",
        r"\coth x",
        r"x\equiv 1",
        r"A\subset B",
        "1:2:3",
        r"\angle ABC",
    ],
)
def test_refused(latex):
    with pytest.raises(UnreadableError):
        read(latex)


def test_relations_are_split_outside_brackets_alone():
    assert read(r"1<x\le 5") == Statement((1, x, 5), ("<", "<="))
    assert isinstance(read(r"\sum_{k=1}^n k"), sympy.Sum)
