"""Which mark counts where several stand: a marker that holds no answer is none, and scripts without spaces are read."""

from fractions import Fraction

import pytest

from mce_llm.eval.answers import extract_answer, is_correct

# text, value, found by
NUMBERS = [
    ("\\boxed{25}\n#### Verification\n5*5=25", "25", "boxed"),
    ("\\boxed{25}\n\n#### Verification", "25", "boxed"),
    ("\\boxed{25}\n#### Case 2", "25", "boxed"),
    ("\\boxed{25}\n#### Case 2: with 3 eggs", "25", "boxed"),
    ("\\boxed{25}\n#### Check with 3 eggs", "25", "boxed"),
    ("#### 16 eggs in total\nShe eats 3 and bakes 4.\n\\boxed{18}", "18", "boxed"),
    ("#### 16 eggs\nShe eats 3.\nThe answer is 18.", "18", "answer_is"),
    ("#### 16\nThe answer is 18.", "16", "hash"),
    ("\\boxed{18}\n\n#### 3 eggs for breakfast", "18", "boxed"),
    ("She has \\boxed{9} eggs.\n#### 18 dollars", "18", "hash"),
    ("#### Total eggs: 16\n#### Eggs sold: 9\n#### Money: $18", "18", "hash"),
    ("#### Total eggs: 16\n#### Eggs sold: 9\n\\boxed{18}", "18", "boxed"),
    ("The answer is 9 for the eggs.\n#### 18 dollars", "18", "hash"),
    ("#### Step 1: 16-3-4 = 9\n#### Step 2: 9*2 = 18", "18", "hash"),
    ("So 18.\n#### Conclusion", "18", "last_number"),
    ("So 18.\n#### Step 3", "18", "last_number"),
    ("#### 1. Find it\n9*2 = 18\n#### 2. Check", "18", "last_number"),
    ("\\boxed{25}\n#### 2. Verification", "25", "boxed"),
    ("#### 18. She makes 18 dollars.", "18", "hash"),
    ("#### Case 2", None, "none"),
    ("#### unknown", None, "hash"),
    ("#### Janet makes $18", "18", "hash"),
    ("#### Day 3", "3", "hash"),
    ("<answer>18</answer>", "18", "answer_tag"),
    ("The total is 20.\n<answer>$18.00</answer>", "18", "answer_tag"),
    ("<answer>\n9*2 = 18\n</answer>", "18", "answer_tag"),
    ("<answer>16 - 3 = 13\n\n9*2 = 18\n#### 18</answer>", "18", "hash"),
    ("<answer>20</answer> no, <answer>18", "18", "answer_tag"),
    ("<answer>3 or 5</answer>", None, "answer_tag"),
    ("<answer>\\boxed{18}</answer>", "18", "boxed"),
    ("<final_answer>18</final_answer>", "18", "answer_tag"),
    ("\\boxed{\\boxed{18}}", "18", "boxed"),
    ("**18**\n\nExplanation: she sells **9** eggs for **$2** each.", "18", "a_colon"),
    ("18\n\n**Explanation:** 9 eggs at $2 each", "18", "a_colon"),
    ("18 dollars\nHere's how: 9 eggs at $2 each", "18", "a_colon"),
    ("She has 9 eggs.\nExplanation: 9 eggs at $2 are $18", "18", "last_number"),
    ("The correct option is **B: 18**", "18", "answer_is"),
    # scripts without spaces, and the digits of others
    ("答案是18。", "18", "answer_is"),
    ("答案：1,080元。", "1080", "answer_is"),
    ("共18个", "18", "last_number"),
    ("答えは18です", "18", "answer_is"),
    ("所以，她赚了$18。", "18", "last_number"),
    ("总共有3万元", "30000", "last_number"),
    ("答案是3万5千", None, "answer_is"),
    ("答案是20吗？不是，是18。", "18", "last_number"),
    ("정답은 18입니다.", "18", "answer_is"),
    ("총18개", "18", "last_number"),
    ("คำตอบคือ18บาท", "18", "answer_is"),
    ("الجواب هو ١٬٢٣٤", "1234", "answer_is"),
    ("١٢٣٤٫٥", "2469/2", "last_number"),
    ("उत्तर है १८", "18", "answer_is"),
    ("答案是１８。", "18", "answer_is"),
    ("The answer is 𝟏𝟖.", "18", "answer_is"),
    ("La respuesta es 18.", "18", "answer_is"),
    ("La réponse est 18.", "18", "answer_is"),
    ("Die Antwort ist 18.", "18", "answer_is"),
    ("Ответ: 18", "18", "answer_is"),
    ("La respuesta es 1.500 dólares.", "1500", "answer_is"),
    ("Die Antwort lautet: 1.234.567,50 €", "2469135/2", "answer_is"),
    ("La réponse est 12,5.", "25/2", "answer_is"),
    ("La respuesta es 1,500.", "1500", "answer_is"),
    ("A resposta é 2.5.", "5/2", "answer_is"),
    ("The answer is 1.500.", "3/2", "answer_is"),
    ("\u200fالإجابة: \u202b١٨\u202c", "18", "answer_is"),
]
EXPRESSIONS = [
    ("\\boxed{\\text{The answer is }5}", "5"),
    ("\\boxed{\\textbf{Answer: }5}", "5"),
    ("\\boxed{25}\n#### Verification", "25"),
    ("\\boxed{25}\n#### Case 2", "25"),
    ("\\boxed{5}\n#### Final Answer", "5"),
    ("#### Check\n\\boxed{5}", "5"),
    ("#### even", "even"),
    ("#### \\frac12", "\\frac{1}{2}"),
    ("<answer>$\\frac{1}{2}$</answer>", "\\frac{1}{2}"),
    ("<answer>x^2</answer>", "x^2"),
    ("答案是$\\frac12$。", "\\frac{1}{2}"),
    ("**Final Answer**\n$x+1$", "x+1"),
    ("The correct option is **(B)**", "B"),
    ("故选：B", "B"),
    ("答案：B", "B"),
    ("**$x+1$**\n\nExplanation: add $1$ to $x$.", "x+1"),
    ("The answer is: x'", "x'"),
    ("The answer is: 'x+1'", "x+1"),
]


@pytest.mark.parametrize(("text", "value", "found_by"), NUMBERS)
def test_numbers(text, value, found_by):
    answer = extract_answer(text)
    assert (answer.value, answer.found_by) == (None if value is None else Fraction(value), found_by)


@pytest.mark.parametrize(("text", "gold"), EXPRESSIONS)
def test_expressions(text, gold):
    answer = extract_answer(text, "math")
    assert is_correct(answer, gold, "math"), answer
    assert not answer.is_fallback


def test_a_prime_is_no_quote():
    assert not is_correct(extract_answer("The answer is: x'", "math"), "x", "math")
    assert extract_answer("The answer is: $", "math").is_missing
