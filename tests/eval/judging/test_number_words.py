"""Numbers in words: the full value or no value, never a part of it."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.eval.answers import extract_answer
from mce_llm.eval.judging.number_words import read_words

READ = {
    "eighteen": "18", "twenty-one": "21", "one hundred and five": "105", "two dozen": "24", "two and a half": "5/2",
    "one half": "1/2", "one-half": "1/2", "a hundred": "100", "two-thirds": "2/3", "half a dozen": "6", "half": "1/2",
    "a quarter": "1/4", "three-fourths": "3/4", "one and three quarters": "7/4", "two and a half million": "2500000",
    "half a million": "500000", "one point five": "3/2", "negative five": "-5", "zero point two five": "1/4",
    "twelve hundred": "1200", "a third": "1/3", "two hundred and fifty thousand": "250000", "a hundred and one": "101",
    "five million two hundred thousand": "5200000", "one-and-a-half": "3/2", "half dozen": "6", "ten thousandths": "1/100",
}  # fmt: skip


@pytest.mark.parametrize(("words", "value"), READ.items())
def test_words(words, value):
    number = read_words(words)
    assert (number.value, number.end) == (Fraction(value), len(words))
    for form in ("The answer is {}.", "#### {}", "\\boxed{{\\text{{{}}}}}", "The answer is {} eggs."):
        assert extract_answer(form.format(words)).value == Fraction(value), form


@pytest.mark.parametrize("words", ["cat", "the third", "tena", "one's", "a cat", "an", ""])
def test_no_number(words):
    assert read_words(words) is None


_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
]
_SMALL += ["eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spell(number: int) -> str:
    """Write a whole number in words."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        rest = f"-{_SMALL[number % 10]}" if number % 10 else ""
        return _TENS[number // 10 - 2] + rest
    for size, name in ((10**6, "million"), (10**3, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            joined = (" and " if rest < 100 else " ") + spell(rest) if rest else ""
            return f"{spell(number // size)} {name}{joined}"
    raise AssertionError


@given(st.integers(0, 10**9 - 1))
def test_every_whole_number(number):
    words = spell(number)
    read = read_words(words)
    assert (read.value, read.end) == (number, len(words))


WHOLE_OR_NOTHING = [
    ("3 dozen", "36"), ("2.5 dozen eggs", "30"), ("2 hundred", "200"), ("3 hundred thousand", "300000"), ("5²", None),
    ("5³ = 125", "125"), ("2**3 = 8", "8"), ("2**3", None), ("2^3", None), ("3! = 6", "6"), ("2 lakh", "200000"),
    ("1.5 crore rupees", "15000000"), ("2 hours 30 minutes", None), ("2 hours and thirty minutes", None),
    ("two hours and thirty minutes", None), ("two hours, thirty minutes", None), ("2 h 30 min", None), ("1h30m", None),
    ("2hr 30min", None), ("5 ft 6 in", None), ("5 feet, 6 inches", None), ("1 lb 4 oz", None), ("2 days and 3 hours", None),
    ("2 weeks 3 days", None), ("3 yards 2 feet", None), ("1 m 20 cm", None), ("3 gallons 2 quarts", None),
    ("18 dollars and 50 cents", "37/2"), ("$18 and 50 cents", "37/2"), ("18 dollars and fifty cents", None),
    ("eighteen dollars and fifty cents", None), ("2 and a half", "5/2"), ("2 hours and a half", "5/2"),
    ("2 and a half hours", "5/2"), ("3 and three quarters", "15/4"), ("2 and 1/2", "5/2"), ("half of 36", None),
    ("two thirds of 27", None), ("twice 9", None), ("twice 9 = 18", "18"), ("4 squared", None), ("12 squared feet", "12"),
    ("sqrt(16)", None), ("sqrt(16) = 4", "4"), ("9(2)", None), ("0.\\overline{3}", None), ("0.(3)", None), ("12_8", None),
    ("1.000.000", None), ("3.4.2021", None), ("2 million 500 thousand", None), ("5 more than 13", None), ("18 divided by 3", None),
    ("one-third of the cake", "1/3"), ("3 quarters of an hour", "3/4"), ("3 quarters", "3"), ("2 thirds", "2/3"), ("3 fifths", "3/5"),
    ("twenty and five", None), ("two times nine", None), ("one in five", None), ("eighteen or twenty", None), ("3*10**2", "300"),
    ("3 dozens", "36"), ("2½ hours", "5/2"), ("10⁻³", None), ("2 hr 15", None), ("6 hundred and 5", None), ("5-year", "5"),
    ("18 hours a day", "18"), ("18 hours per day", "18"), ("5 feet per second", "5"), ("18 in total", "18"), ("18m²", "18"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "value"), WHOLE_OR_NOTHING)
@pytest.mark.parametrize(
    "form",
    ["The answer is {}.", "The answer is: {}", "#### {}", "\\boxed{{{}}}", "A: {}", "<answer>{}</answer>"],
)
def test_the_full_value_or_none(written, value, form):
    answer = extract_answer("16 - 3 - 4 = 9 eggs.\n" + form.format(written))
    assert answer.value == (None if value is None else Fraction(value))
    assert answer.found_by != "last_number"


def test_latex_of_two_measures():
    assert extract_answer("\\boxed{2 \\text{ hours } 30 \\text{ minutes}}").value is None
    assert extract_answer("\\boxed{2\\text{ hours and }30\\text{ min}}").value is None
    assert extract_answer("\\boxed{\\text{two dozen}}").value == 24
