r"""Answers of which a part reads like a number: the whole is judged, or it has no value."""

from fractions import Fraction

import pytest

from mce_llm.eval.answers import extract_answer, is_correct

# Behind a marker; None where the whole is not one number.
QUANTITIES = [
    (r"2\text{ dozen}", "24"),
    (r"3\ \text{hundred}", "300"),
    (r"1.8\times10^3", "1800"),
    (r"1.8 \times 10^{3}", "1800"),
    (r"\frac12", "1/2"),
    (r"\dfrac12", "1/2"),
    (r"3\frac12", "7/2"),
    (r"3 \tfrac12", "7/2"),
    (r"\frac1{2}", "1/2"),
    (r"\frac{1}2", "1/2"),
    (r"\frac{\$36}{2}", "18"),
    ("4 and one-half hours", "9/2"),
    ("4 and two-fifths", "22/5"),
    ("3 thousands", "3000"),
    ("half of a dozen", "6"),
    ("1/2 a dozen", "6"),
    ("a dozen and a half", "18"),
    ("3 dozen and a half", "42"),
    ("$18 a dozen", "18"),
    ("1.25% of 5,000", None),
    ("3 thousand 500", None),
    ("18 : 3", None),
    (r"7\text{:}30", None),
    ("7{:}30", None),
    ("2' 3\"", None),
    ("50% of 36", None),
    ("25% of 80 = 20 students", "20"),
    ("25% of the students", "25"),
    ("1/2 of 36", None),
    ("1/2 of the cake", "1/2"),
    ("2 hours & 30 minutes", None),
    ("3 weeks and a day", None),
    ("18 hours a day", "18"),
    ("18 apples, 3 pears", None),
    ("18 through 20", None),
    ("120 minutes, or 2 hours", "120"),
    (r"\pm 18", None),
    ("x=18, y=3", None),
    ("the sum of 9 and 9", None),
    ("one more than 17", None),
    ("1 234,50 €", None),
    ("2 500,00", None),
    ("1 234 567,50", None),
    ("1 234 567", "1234567"),
    (r"10 \quad 12", None),
    (r"10 \\ 12 \\ 14", None),
    (r"\$10\ \$12", None),
    ("1/2  3/4", None),
    ("10 2/3", "32/3"),
    ("2 12-inch pizzas", "2"),
    ("10 1.5-litre bottles", "10"),
    ("3 100,000-seat halls", "3"),
    ("18 7 of them", "18"),
    (r"10 \leq x \leq 12", None),
    ("10 ≤ x", None),
    ("10 < x < 12", None),
    (r"10\sim12", None),
    (r"12 \neq 13", None),
    ("18 <|im_end|>", "18"),
    ("18 <s>", "18"),
    ("18<b>5</b>", "18"),
    ("12M", None),
    ("3bn", None),
    ("5K", None),
    ("$5M", "5000000"),
    ("5K dollars", "5000"),
    ("2.5M USD", "2500000"),
    ("12k", "12000"),
    ("12m", "12"),
    ("60 m", "60"),
]


@pytest.mark.parametrize("text", ["The answer is {}.", "\\boxed{{{}}}"])
@pytest.mark.parametrize(("quantity", "value"), QUANTITIES)
def test_the_whole_or_nothing(text, quantity, value):
    expected = None if value is None else Fraction(value)
    assert extract_answer(text.format(quantity)).value == expected


@pytest.mark.parametrize("content", [r"\frac{x}{2}", "x+5", r"> 18", r"18\pm2"])
def test_a_box_without_a_value(content):
    answer = extract_answer(f"She has 2 and 5 and 18.\n\\boxed{{{content}}}")
    assert (answer.value, answer.found_by) == (None, "boxed")


@pytest.mark.parametrize(
    "text", ["The answer is {}.", "\\boxed{{{}}}", "<answer>{}</answer>", "#### {}", "**{}**"]
)
@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        (r"60 \text{ m}^2", 60),
        (r"60\,\mathrm{m^2}", 60),
        (r"60 \text{ m}^{3}", 60),
        ("60 m^2", 60),
        ("60 m²", 60),
        (r"9.8\text{ m/s}^2", Fraction("9.8")),
        ("9.8 m/s²", Fraction("9.8")),
        (r"1000\text{ kg/m}^3", 1000),
        (r"60 \text{ m}^2 \text{ of cloth}", 60),
        (r"20 \text{ m}^2 + 10 \text{ m}^2 = 30 \text{ m}^2", 30),
        (r"20 cm^2 + 10 cm^2 = 30 cm^2", 30),
    ],
)
def test_units_with_powers(text, quantity, value):
    assert extract_answer(text.format(quantity)).value == value
    assert is_correct(quantity, str(float(value)))


@pytest.mark.parametrize(
    "content",
    [
        "10x",
        "3x^2",
        "3 x^2",
        "x^{2}",
        "m^2",
        "5 - m^2",
        "2m + 3",
        "3 m^2 + 5",
        "3m^2+5",
        "3 m^{2}+5",
        "60 m^10",
    ],
)
def test_an_unknown_is_no_unit(content):
    assert extract_answer(f"\\boxed{{{content}}}").value is None


def test_an_exponent_is_not_the_last_number():
    assert extract_answer(r"It covers $60 \text{ m}^{2}$.").value == 60
    assert extract_answer("It moves at 5 m s^{-1}").value == 5
    assert extract_answer("A: 60 m^2.\n\nHe has 5 rolls.").value == 60


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Answer: 16 - 3 - 4 = 9 eggs. 9 * 2 = 18 dollars.", 18),
        ("A: 5 + 3 = 8 apples.\n8 x 2 = 16 dollars.", 16),
        ("Answer: 9 * 2 = 18 dollars.\n\nExplanation: 16 - 7 = 9 eggs.", 18),
        ("Answer: 18 dollars. She sells 16 - 7 = 9 eggs.", 18),
        ("Answer: 1. She has 9 eggs.\n2. She makes $18.", 18),
        ("The answer is 2 hrs. 30 min.", None),
        ("The answer is 2 hrs. She sleeps.", 2),
        ("The answer is 20, no wait, 18.", 18),
        ("The answer is 20... actually 18.", 18),
        ("The answer is 20 (sorry, 18).", 18),
        ("The answer is 18. Actually 9 eggs are sold.", 18),
        ("答案是18个苹果和3个梨。", None),
    ],
)
def test_the_first_number_of_a_solution_is_not_its_answer(text, value):
    assert extract_answer(text).value == value


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"The solutions are $\boxed{3}$ and $\boxed{-2}$.", "3,-2", True),
        (r"The solutions are $\boxed{3}$ and $\boxed{-2}$.", "-2", False),
        (r"$x = \boxed{3}$ or $x = \boxed{-2}$", "-2", False),
        (r"The answer is $\boxed{3}$ or $\boxed{4}$.", "4", False),
        (r"The answer is \boxed{A}, \boxed{D}", "A, D", True),
        (r"\boxed{3}, \boxed{5}, \boxed{7}", "7,5,3", True),
        (r"So $x = 3$ or $x = 4$.", "4", False),
        (r"So $x = 3$ and $x = 4$.", "3, 4", True),
        (r"The roots are $3$ and $4$.", "4", False),
        (r"With $r = 3$ and $A = 9\pi$.", r"9\pi", True),
        (r"\boxed{3} eggs. Hence \boxed{-2}", "-2", True),
        (r"\boxed{3}\text{ or }\boxed{3}", "3", True),
        (r"Thus the area is $12\pi \approx 37.7$.", r"12\pi", True),
        (r"Thus $A = 12\pi \approx 37.7$.", r"12\pi", True),
        (r"So $x \approx 37.7$.", "37.7", True),
        (r"\boxed{\Large 5}", "5", True),
    ],
)
def test_joined_boxes_and_exact_sides(text, gold, right):
    assert is_correct(extract_answer(text, "math"), gold) is right


def test_boxes_of_several_answers_have_no_value():
    assert extract_answer("\\boxed{3} or \\boxed{5}").value is None
    assert extract_answer("\\boxed{5} and \\boxed{5}").value == 5
    assert extract_answer("\\boxed{9} eggs at $2, so \\boxed{18}").value == 18


def test_the_last_number_is_whole():
    assert extract_answer("In all 1 234,50").value is None
    assert extract_answer("She counts 1 2 3 4 5").value is None
    assert extract_answer("She has 1 2 3, so 18 left").value == 18


def test_words_equal_themselves():
    assert is_correct("II and III", "II and III", "math")
    assert not is_correct("II and III", "I and III", "math")
