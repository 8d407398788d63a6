"""When two equations, inequalities and sets say the same."""

import pytest

pytest.importorskip("latex2sympy2_extended")

from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.eval.judging.symbolic_statements import mean_the_same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x^2+1=0", "x^2+2=0"),  # neither has a real solution
        (r"\sqrt{x}=-1", r"\sqrt{x}=-2"),
        ("2+2=4", "3+3=6"),  # both are true
        ("1=2", "2=3"),  # both are false
        ("x=x", "y=y"),
        ("x^2<-1", "x^2<-2"),
        ("(x-1)^2=0", "x-1=0"),
        ("x>2", r"x\ge 2"),
        ("x>2", "x<2"),
        ("-x>-2", "x>2"),
        ("1<x<5", r"1<x\le 5"),
        ("x<y<z", "x<z<y"),
        (r"x\ne 3", "x=3"),
        ("x+3>5", r"(2,\infty)"),
        (r"x\in[1,2]", r"y\in[1,2]"),
        ("x>e^{-200}", r"(e^{-201},\infty)"),
        ("x=5", "5"),
        (r"\{1,2\}", r"\{1,3\}"),
        (r"\mathbb{Z}", r"\mathbb{N}"),
    ],
)
def test_different(one, other):
    assert not mean_the_same(one, other)
    assert not mean_the_same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("y=2x+3", "4x-2y+6=0"),
        ("2+2=4", "4=2+2"),
        ("x=y=5", "y=5=x"),
        ("1<x<5", "5>x>1"),
        ("-2<2x<4", "-1<x<2"),
        (r"-2x\le 4", r"x\ge -2"),
        (r"5\ne x", r"x\ne 5"),
        ("f(x)=2x", "2x=f(x)"),
        ("x>2", r"(2,\infty)"),
        (r"-2\le x<7", "[-2,7)"),
        (r"x\ne 3", r"\mathbb{R}\setminus\{3\}"),
        (r"x\in[1,2]", r"1\le x\le 2"),
        (r"(-\infty,\infty)", r"\mathbb{R}"),
        (r"2\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\4\end{pmatrix}"),
    ],
)
def test_equal(one, other):
    assert mean_the_same(one, other)
    assert mean_the_same(other, one)


@settings(max_examples=12, deadline=None)
@given(
    st.tuples(*[st.integers(-9, 9)] * 3).filter(lambda c: c[0] and c[1]),
    st.integers(-9, 9).filter(bool),
    st.integers(0, 2),
)
def test_a_factor_changes_no_equation_and_turns_an_inequality(coefficients, factor, changed):
    def write(values, sign):
        a, b, c = values
        return f"({a})x+({b})y{sign}({c})"

    scaled = [factor * value for value in coefficients]
    assert mean_the_same(write(coefficients, "="), write(scaled, "="))
    assert mean_the_same(write(coefficients, "<"), write(scaled, "<")) is (factor > 0)
    assert mean_the_same(write(coefficients, "<"), write(scaled, ">")) is (factor < 0)
    scaled[changed] += 1
    assert not mean_the_same(write(coefficients, "="), write(scaled, "="))
