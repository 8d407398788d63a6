"""What is a number in a solution, and which of them are results."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.eval.likelihood.numerals import numerals


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234.5 eggs", ["1,234.5"]),
        ("12,345,678", ["12,345,678"]),
        ("1,2,3", ["1", "2", "3"]),
        ("1,2345", ["1", "2345"]),
        ("1234,567", ["1234", "567"]),
        ("3/4 of 1/2/3", ["3/4", "1/2/3"]),
        ("3 / 4", ["3", "4"]),
        ("50% or 5\\% or 5 %", ["50%", "5\\%", "5"]),
        (".5 and 0.25.", [".5", "0.25"]),
        ("5.", ["5"]),
        ("2x, x2, 1st, 16-3", ["2", "2", "1", "16", "3"]),
        ("$18 -7 −7", ["18", "7", "7"]),
        ("٣ and ½ and 5²", ["٣", "5"]),
        ("three", []),
        ("", []),
    ],
)
def test_literals(text, expected):
    assert [text[found.start : found.end] for found in numerals(text)] == expected


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("16 - 3 = 13", ["13"]),
        ("16-3=13", ["13"]),
        ("9 * 2 = $18", ["18"]),
        (r"9 * 2 = \$18", ["18"]),
        ("2 - 9 = -7, = - $7, = $-7, =−7", ["7", "7", "7", "7"]),
        ("a = 1 = 2/4 = 50%", ["1", "2/4", "50%"]),
        ("=\n5", ["5"]),
        ("= about 5", []),
        ("= (5", []),
        ("x >= 5, x <= 5, x != 5, x := 5, x ≠ 5", []),
        ("x == 5", []),
        ("= x5", []),
        ("5 = x", []),
        ("= " + " " * 30 + "5", []),
    ],
)
def test_results(text, results):
    assert [text[found.start : found.end] for found in numerals(text) if found.result] == results


@given(st.text(alphabet="0123456789,./%=$- x\n\\٣", max_size=40))
def test_every_digit_is_in_exactly_one_literal(text):
    found = numerals(text)
    covered = [place for one in found for place in range(one.start, one.end)]
    assert len(covered) == len(set(covered))
    assert {place for place, character in enumerate(text) if re.fullmatch(r"\d", character)} <= set(covered)
    for one in found:
        literal = text[one.start : one.end]
        assert re.search(r"\d", literal)
        assert re.fullmatch(r"[\d,./%\\]+", literal)
        assert literal[-1] not in ",/\\"
