"""Commands with arguments: which are taken off, and what is left where an argument is missing."""

import re

import pytest

from mce_llm.eval.judging.latex_commands import closing_brace, without_looks

UNIT = re.compile(r"\s*(?:m|cm|m/s)")


@pytest.mark.parametrize(
    ("latex", "plain"),
    [
        (r"\boldsymbol{\frac12}", r"\frac{1}{2}"),
        (r"\mathbf{\mathbf{x}}", "x"),
        (r"\mathbf x", "x"),
        (r"\color{red}5", "5"),
        (r"\color[rgb]{1,0,0}{5}", "{5}"),
        (r"\textcolor{red}{\frac{1}{\sqrt{2}}}", r"{\frac{1}{\sqrt{2}}}"),
        (r"\nicefrac12", r"\frac{1}{2}"),
        (r"\cfrac{1}{1+\cfrac{1}{2}}", r"\frac{1}{1+\frac{1}{2}}"),
        (r"\frac\pi2", r"\frac{\pi}{2}"),
        (r"\frac{\sqrt3}2", r"\frac{\sqrt3}{2}"),
        (r"x^\frac12", r"x^{\frac{1}{2}}"),
        (r"\sqrt\frac12", r"\sqrt{\frac{1}{2}}"),
        (r"\binom52", r"\binom{5}{2}"),
        (r"{n \choose k}", r"\binom{n }{ k}"),
        (r"{1 \over 2}", r"\frac{1 }{ 2}"),
        (r"\textbf{a \emph{b} {c}}", r"\text{a b c}"),
        (r"5\mathrm{m/s}", r"5\text{m/s}"),
        (r"5{\rm cm}", r"5\text{ cm}"),
        (r"a\mathrm{m}", "am"),
        (r"\underset{x\to 0}{\lim}", r"\lim_{x\to 0}"),
        (r"a\overset{?}{=}b", "a=b"),
        (r"\overset{\frown}{AB}", r"{AB}^{\frown}"),
        # an argument is missing: left as it is
        (r"\frac{1}", r"\frac{1}"),
        (r"\frac{1}{", r"\frac{1}{"),
        (r"\mathbf{x", r"\mathbf{x"),
        (r"\color", r"\color"),
        (r"1\\frac12", r"1\\frac12"),  # a line break and a word
    ],
)
def test_without_looks(latex, plain):
    assert without_looks(latex, UNIT).replace(" ", "") == plain.replace(" ", "")


def test_closing_brace():
    assert closing_brace(r"{a\}{b}}c", 0) == 7
    assert closing_brace("{a", 0) == -1
