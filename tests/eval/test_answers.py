"""Answers in every form that solutions are written in, and the errors that other evaluators make."""

import re
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.eval.answers import STYLES, Answer, GoldAnswerError, extract_answer, gold_value, is_correct

# form × (value or None, found by)
FORMS = [
    # #### X
    ("#### 18", "18", "hash"),
    ("####18", "18", "hash"),
    ("####\n18", "18", "hash"),
    ("#### 5 apples", "5", "hash"),
    ("#### $1,080.00", "1080", "hash"),
    (r"#### \$1,080", "1080", "hash"),
    ("#### 10%", "10", "hash"),
    ("#### 2 million", "2000000", "hash"),
    ("#### 12.50", "25/2", "hash"),
    ("#### 18</s>", "18", "hash"),
    ("#### 18<|endoftext|>blah 20", "18", "hash"),
    ("#### \u22125", "-5", "hash"),
    ("#### -$5", "-5", "hash"),
    ("#### \u20135", "-5", "hash"),
    ("#### 5 + 3 = 8 apples", "8", "hash"),
    ("#### 9 eggs * $2/egg = $18", "18", "hash"),
    ("#### 18 = 9*2", "18", "hash"),
    ("#### Janet makes $18", "18", "hash"),
    ("#### 7-year", "7", "hash"),
    ("#### unknown", None, "hash"),
    ("#### ", None, "none"),
    ("#### 1. Compute\nx\n#### 2. Sum\n5+4\n#### 9", "9", "hash"),
    ("#### Step 1\n16-3\nSo \\boxed{13}", "13", "boxed"),
    # The answer is
    ("The answer is: $18.", "18", "answer_is"),
    ("The answer is: 18\n", "18", "answer_is"),
    ("The answer is: 18 dollars per day.", "18", "answer_is"),
    ("The answer is 12.50.", "25/2", "answer_is"),
    ("The answer is:\n\n18", "18", "answer_is"),
    ("The answer is:\n- 18 eggs", "18", "answer_is"),
    ("The answer is: .5", "1/2", "answer_is"),
    ("The answer is 32.5.", "65/2", "answer_is"),
    ("The answer is: 1,234,567", "1234567", "answer_is"),
    ("The answer is: 1 234 567.", "1234567", "answer_is"),
    ("The answer is: 1 1/2 cups", "3/2", "answer_is"),
    ("The answer is: 1½ cups", "3/2", "answer_is"),
    ("The answer is: 3/4 of a pie.", "3/4", "answer_is"),
    ("The answer is: $18 and 50 cents?", "37/2", "answer_is"),
    ("The answer is 18 dollars and 50 cents.", "37/2", "answer_is"),
    ("The answer is: 5:30", None, "answer_is"),
    ("The answer is 5 hours and 30 minutes.", None, "answer_is"),
    ("The answer is 20-30", None, "answer_is"),
    ("The answer is 3 + 4.", None, "answer_is"),
    ("The answer is: unknown", None, "answer_is"),
    ("She has 3 + 4.\nThe answer is: unknown", None, "answer_is"),
    ("The answer is $.", None, "none"),
    ("The answer is 12 PM", "12", "answer_is"),
    ("The answer is -5 degrees", "-5", "answer_is"),
    ("The answer is negative 5.", "-5", "answer_is"),
    ("The answer is €1.080,00", None, "answer_is"),
    (r"The answer is: \boxed{18}", "18", "answer_is"),
    (r"The answer is: \boxed{\frac{3}{4}}.", "3/4", "answer_is"),
    (r"The answer is: $\frac{1}{2}$", "1/2", "answer_is"),
    ("The answer is: $18$", "18", "answer_is"),
    (r"The final answer is: $\boxed{18}$. I hope it is correct.", "18", "answer_is"),
    ("Therefore, the answer is **42**.", "42", "answer_is"),
    ("The answer is: **$1,234.00**", "1234", "answer_is"),
    ("The answer is: `18`", "18", "answer_is"),
    ("the answer is approximately £18.5", "37/2", "answer_is"),
    ("The answer to the question is 18.", "18", "answer_is"),
    ("The answer is Janet makes $18 every day.", "18", "answer_is"),
    ("The answer is 9 * 2 = $18", "18", "answer_is"),
    ("The answer is 5 x 3 = 15 apples.", "15", "answer_is"),
    ("The answer is $16-3-4=9$ eggs.", "9", "answer_is"),
    ("The answer is $x=5$", "5", "answer_is"),
    ("The answer is 18 because 9*2=18, not 3.", "18", "answer_is"),
    ("The answer is $18 (since 16-3-4=9 eggs).", "18", "answer_is"),
    ("The answer is not 15.", "15", "last_number"),
    ("August got 3 wrong: the third answer was 1800-400=1400. So 7 remain.", "7", "last_number"),
    # \boxed{X}
    (r"\boxed{18}", "18", "boxed"),
    (r"\[ \boxed{18} \]", "18", "boxed"),
    (r"So $\boxed{-7}$.", "-7", "boxed"),
    (r"\boxed{\text{-}7}", "-7", "boxed"),
    (r"\boxed{1{,}234\text{ dollars}}", "1234", "boxed"),
    (r"\boxed{1,\!234}", "1234", "boxed"),
    (r"\boxed{1\,234}", "1234", "boxed"),
    (r"\boxed{\$18}", "18", "boxed"),
    (r"\boxed{50\%}", "50", "boxed"),
    (r"\boxed{90^\circ}", "90", "boxed"),
    (r"\boxed{\dfrac{3}{4}}", "3/4", "boxed"),
    (r"\boxed{-\frac{3}{4}}", "-3/4", "boxed"),
    (r"\boxed{\frac34}", "3/4", "boxed"),
    (r"\boxed{1\frac{1}{2}}", "3/2", "boxed"),
    (r"\boxed{\text{The total is } 460}", "460", "boxed"),
    (r"\boxed{x = 5}", "5", "boxed"),
    (r"\boxed{1.2 \times 10^6}", "1200000", "boxed"),
    (r"\boxed{3, 5}", None, "boxed"),
    (r"\boxed{3\pi}", None, "boxed"),
    (r"\boxed{2^{10}}", None, "boxed"),
    (r"\boxed{\text{no}}", None, "boxed"),
    (r"\boxed 18", "18", "boxed"),
    (r"\boxed{18", "18", "last_number"),
    # A: X
    ("A: 64", "64", "a_colon"),
    ("A: $64.00.", "64", "a_colon"),
    ("**Answer:** 42", "42", "a_colon"),
    ("**Answer**: 42", "42", "a_colon"),
    ("**Answer: $42**", "42", "a_colon"),
    ("Final Answer: 18 hours", "18", "a_colon"),
    ("### Final Answer\n18", "18", "a_colon"),
    ("A: $18\n\nExplanation: 9*2=18", "18", "a_colon"),
    ("A: She makes 9 * 2 = $18", "18", "a_colon"),
    ("A: There are 15 trees originally. Then there were 21. So 21 - 15 = 6.", "6", "last_number"),
    ("A: 15 trees were there at first. Then 21. The answer is 6.", "6", "answer_is"),
    ("A: 15 eggs\nB: 20 eggs\nTogether 35 eggs", "35", "last_number"),
    ("Seats in Section A: 300\nThen there are 20 more, 320", "320", "last_number"),
    # **X**
    ("**$1,234**", "1234", "bold"),
    ("**Step 1:** 3+4=7\nShe has **7 eggs** left.", "7", "bold"),
    ("**Total cost: $18**", "18", "bold"),
    ("1. **18 eggs** are sold\n2. **Total:** 5 * 4 = **$20**", "20", "bold"),
    ("**Step 1** 3+4=7. So 8 remain.", "8", "last_number"),
    ("**18** eggs are left", "18", "bold"),
    ("so **18.**", "18", "bold"),
    ("**1**. Find\n**2)** Sum is 30", "30", "last_number"),
    ("**1.** Find\n**2.** Sum is 30", "30", "last_number"),
    ("**Step 1** 3+4=7\nThe answer is: 7", "7", "answer_is"),
    # no marker
    ("She has 12\n", "12", "last_number"),
    ("She has 12.", "12", "last_number"),
    ("The loss is -$5", "-5", "last_number"),
    ("3*4=<<3*4=12>>12 total", "12", "last_number"),
    ("3*4 is <<3*4=12>>", "4", "last_number"),
    ("She leaves at 5:30", None, "last_number"),
    ("<<3*4=12>>", None, "none"),
    ("no idea", None, "none"),
    ("", None, "none"),
    # several markers
    ("**9** eggs, \\boxed{9}.\n#### 18", "18", "hash"),
    ("so \\boxed{9} eggs. The answer is: 18", "18", "answer_is"),
    ("the answer is 9 for the eggs. In all \\boxed{18}", "18", "boxed"),
    ("the answer is: 18\nThat cannot be right. The answer is: 20", "20", "answer_is"),
    ("#### 18\nThe answer is: 18", "18", "hash"),
    # run-on generations
    ("The answer is: 18\n\nQuestion: 5+5?\nThe answer is: 10", "18", "answer_is"),
    ("#### 18\n\n### Instruction:\nx\n#### 5", "18", "hash"),
    ("#### 18\n\nBelow is an instruction that describes a task. 3\n#### 5", "18", "hash"),
    ("#### 18\n\nTom has 5 apples. How many apples are left?\n#### 5", "18", "hash"),
    ("so 18 dollars.\nQ: Tom has 3\nA: 3", "18", "last_number"),
    ("The answer is 18. Q: Tom has 3? A: 3", "18", "answer_is"),
    ("18 eggs<|im_end|>\n<|im_start|>user\nTom\n#### 5", "18", "last_number"),
    ("Question: 16 eggs?\nAnswer: 5+5=10\n#### 10", "10", "hash"),
]


@pytest.mark.parametrize(("text", "value", "found_by"), FORMS)
def test_form(text, value, found_by):
    answer = extract_answer(text)
    assert (answer.value, answer.found_by) == (None if value is None else Fraction(value), found_by)


STRONG_FORMS = [
    form for form in FORMS if form[2] in ("hash", "answer_is", "boxed") and form[0][:9] != "Question:"
]


@pytest.mark.parametrize(("text", "value", "found_by"), STRONG_FORMS)
def test_form_at_the_end_of_a_solution(text, value, found_by):
    """Worked numbers before a marked answer must not be taken for it."""
    answer = extract_answer("She has 16 - 3 - 4 = <<16-3-4=9>>9 **eggs**, worth 9 * 2 = $777.\n" + text)
    assert (answer.value, answer.found_by) == (None if value is None else Fraction(value), found_by)


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("12.50", "12.5", True),
        ("120006", "120000", False),
        ("50%", "50", True),
        ("50", "50%", True),
        ("0.5", "50%", False),
        ("50%", "0.5", False),
        ("50%", "5000", False),
        ("32.5", "32", False),
        ("32.5", "33", False),
        ("12\n", "12", True),
        ("12\n", "1", False),
        ("1,234,567", "1234567", True),
        ("1,234,567", "1234", False),
        ("$18.00", "18", True),
        ("$18.", "18", True),
        ("\u22125", "-5", True),
        ("5", "-5", False),
        ("1/3", "0.3333333333333333", False),
        ("1/2", "0.5", True),
        ("1 1/2", "1.5", True),
        ("0.1", "1/10", True),
        ("100000000000000000000001", "100000000000000000000000", False),
        ("#### 9\n\nQuestion: next\n#### 7", "7", False),
        ("it is <<2*9=18>>", "18", False),
        ("", "0", False),
        ("5:30", "5", False),
        ("3 apples and 5 pears", "5", True),
        ("18", "3 * 6 = <<3*6=19>>18\n#### 18", True),
        ("19", "3 * 6 = <<3*6=19>>18\n#### 18", False),
    ],
)
def test_is_correct(prediction, gold, expected):
    assert is_correct(prediction, gold) is expected
    assert is_correct(extract_answer(f"The answer is: {prediction}"), gold) in (expected, False)


def test_is_correct_takes_the_extracted_answer():
    assert is_correct(Answer(Fraction(18), "18", "hash"), "18")
    assert not is_correct(Answer(None, "5:30", "hash"), "5")


@pytest.mark.parametrize(
    ("text", "style", "value"),
    [
        ("**3** \\boxed{4} the answer is 5\nA: 6\n#### 7", "bold", 3),
        ("**3** \\boxed{4} the answer is 5\nA: 6\n#### 7", "boxed", 4),
        ("**3** \\boxed{4} the answer is 5\nA: 6\n#### 7", "answer_is", 5),
        ("**3** \\boxed{4} the answer is 5\nA: 6\n#### 7", "a_colon", 6),
        ("**3** \\boxed{4} the answer is 5\nA: 6\n#### 7", "hash", 7),
        ("#### 7\nthat is 8", "last_number", 8),
    ],
)
def test_style_restricts_to_one_marker(text, style, value):
    assert extract_answer(text, style=style) == Answer(Fraction(value), str(value), style)
    assert extract_answer("nothing here but 5", style="hash").found_by == "none"


def test_a_style_is_not_looked_for_in_the_next_question():
    assert extract_answer("so 18\n\nQuestion: x\n#### 5", style="hash") == Answer(None, "", "none")


numbers = st.one_of(
    st.integers(-(10**9), 10**9).map(lambda n: (Fraction(n), str(n))),
    st.integers(-(10**9), 10**9).map(lambda n: (Fraction(n), f"{n:,}")),
    st.integers(-(10**9), 10**9).map(lambda n: (Fraction(n), f"{n:,}.00")),
    st.decimals(-(10**6), 10**6, places=2).map(lambda d: (Fraction(str(d)), f"{d:,}")),
    st.tuples(st.integers(0, 999), st.integers(1, 99)).map(lambda t: (Fraction(*t), f"{t[0]}/{t[1]}")),
    st.integers(-999, -1).map(lambda n: (Fraction(n), f"\u2212{-n}")),
)
TEMPLATES = {
    "hash": ["#### {}", "####{}", "#### ${}", "#### {} apples", "#### {}</s>", "#### **{}**"],
    "answer_is": [
        "The answer is: {}",
        "The answer is {}.",
        "The answer is: ${}.",
        "The answer is {} miles per hour.",
        "So the final answer is **{}**.",
        "The answer is: {}\n\nQuestion: 5?\nThe answer is: 987654321",
        "The answer is: $\\boxed{{{}}}$.",
    ],
    "boxed": [
        "\\boxed{{{}}}",
        "$\\boxed{{\\${}}}$",
        "\\[\\boxed{{{}\\text{{ miles}}}}\\]",
        "\\boxed{{{}\\%}}",
    ],
    "a_colon": ["A: {}", "A: ${}.", "**Answer:** {}", "Answer: {} eggs", "### Answer\n{}"],
    "bold": ["**{}**", "In all **${}**.", "She has **{} eggs** left."],
    "last_number": ["She has {}.", "In all: {}", "That makes ${} dollars"],
}


@settings(max_examples=60, deadline=None)
@given(
    number=numbers, before=st.sampled_from(["", "5 * 3 = <<5*3=15>>15 eggs.\n", "**Step 1:** take 7 of 9.\n"])
)
@pytest.mark.parametrize("found_by", TEMPLATES)
def test_round_trip(found_by, number, before):
    value, written = number
    for template in TEMPLATES[found_by]:
        text = before + template.format(written)
        answer = extract_answer(text)
        assert (answer.value, answer.found_by) == (value, found_by), text
        assert is_correct(answer, str(value))
        assert not is_correct(answer, str(value + Fraction(1, 1000)))


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        st.sampled_from("0123456789 .,/$%#*:=-+\n\\{}()<>^AQaxeis½\u2212") | st.characters(), max_size=120
    )
)
def test_any_text_has_an_answer_or_none(text):
    for prefix in ("", "The answer is: ", "#### ", "\\boxed{"):
        answer = extract_answer(prefix + text)
        assert answer.found_by in (*STYLES, "none")
        assert answer.value is None or isinstance(answer.value, Fraction)


@pytest.mark.parametrize(
    "text",
    [
        "1" * 50_000,
        "#### " + "9" * 5000,
        "3/0",
        "#### 5/0",
        "1e999",
        "#" * 20_000,
        "1," * 20_000,
        "$" * 20_000,
        "\\boxed{" * 2000,
        "the answer is " * 2000,
        "#### " + "1 = " * 5000,
        "<<" * 20_000,
        " " * 30_000,
        "**1** " * 3000,
        "\\frac{" * 5000,
    ],
    ids=lambda text: text[:12],
)
def test_degenerate_text_is_read_quickly(text):
    start = time.process_time()
    answer = extract_answer(text)
    assert time.process_time() - start < 5  # of this process alone; a quadratic pattern takes minutes
    assert answer.value is None or answer.value.denominator < 10**6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: extract_answer(18), TypeError, "must be a string, got int"),
        (lambda: extract_answer(None), TypeError, "must be a string, got NoneType"),
        (
            lambda: extract_answer("18", style="box"),
            ValueError,
            "unknown answer style 'box'; choose one of hash",
        ),
        (lambda: is_correct(18, "18"), TypeError, "an Answer or a string, got int"),
        (lambda: is_correct("18", 18), TypeError, "must be a string, got int; write '18'"),
        (lambda: gold_value(""), GoldAnswerError, "'' is not one number"),
        (lambda: gold_value("<<3*4=12>>"), GoldAnswerError, "is not one number"),
        (lambda: gold_value("5:30"), GoldAnswerError, "'5:30' is not one number"),
        (lambda: gold_value("3 or 4"), GoldAnswerError, "is not one number"),
        (lambda: gold_value("no " * 99), GoldAnswerError, "…"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_answers_need_neither_torch_nor_transformers():
    code = (
        "import sys; from mce_llm.eval.answers import is_correct; from mce_llm.eval import wilson_interval;"
        "assert is_correct('#### 1', '1'); print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
