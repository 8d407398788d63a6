"""Reference answers: the number or the expression that a record of a data set gives as the right answer."""

from __future__ import annotations

import re
from fractions import Fraction

from mce_llm.data.boxed import boxed_answer
from mce_llm.errors import MceLlmError
from mce_llm.eval.judging.answer import MATH, Answer, expression_answer, number_alone
from mce_llm.eval.judging.quantities import normalize

_LATEX = re.compile(r"\\[A-Za-z]{2}|\\[{!]|\\\\")
# What surrounds answers and says nothing alone.
_NOTHING = re.compile(
    r"(?:\\(?:[A-Za-z]*text[a-z]*|q?quad|left|right|mathrm)(?![A-Za-z])|\\[ ,;:!>()\[\]]|[\s{}$.,;:*_`~])*"
)


class GoldAnswerError(MceLlmError, ValueError):
    """A reference answer that is not one number, or for MATH nothing at all."""


def read_reference(gold: str, style: str | None = None) -> Answer:
    r"""Read a reference answer; calculator annotations `<<…>>` are never part of a number.

    Args:
        gold: A number such as `1,234`, a solution that ends `#### 1,234`, or for MATH an expression or a solution with
            its answer in the last `\boxed{…}`, or in several that are joined by a comma, `and` or `or`.
        style: `math` for an expression; by default a number, or an expression where the text is LaTeX and not one
            number.

    Returns:
        The answer.

    Raises:
        GoldAnswerError: If it is not one number, or for MATH there is nothing but
            blanks, brackets or punctuation; letters (`A, D`) and words in any script are answers.
        TypeError: If it is not a string.
    """
    _check_reference(gold)
    number = None if style == MATH else _reference_number(gold)
    if number is not None:
        return number
    if style == MATH or _LATEX.search(gold):
        return _reference_expression(gold)
    raise _not_one_number(gold)


def gold_value(gold: str) -> Fraction:
    """Read a reference answer that must be a number; calculator annotations `<<…>>` are never part of it.

    Args:
        gold: A number such as `1,234`, or a solution that ends `#### 1,234`.

    Returns:
        The exact value.

    Raises:
        GoldAnswerError: If it is not one number.
        TypeError: If it is not a string.
    """
    _check_reference(gold)
    number = _reference_number(gold)
    if number is None or number.value is None:
        raise _not_one_number(gold)
    return number.value


def gold_expression(gold: str) -> str:
    r"""Read a reference answer of MATH.

    Args:
        gold: An expression, a solution with its answer in the last `\boxed{…}` or in several that are joined, or one that ends
            `#### X`.

    Returns:
        The expression, as written.

    Raises:
        GoldAnswerError: If there is none.
        TypeError: If it is not a string.
    """
    return read_reference(gold, MATH).text


def _check_reference(gold: object) -> None:
    if not isinstance(gold, str):
        raise TypeError(f"a reference answer must be a string, got {type(gold).__name__}; write '18', not 18")


def _reference_number(gold: str) -> Answer | None:
    return number_alone(normalize(gold).rpartition("####")[2], "reference")


def _reference_expression(gold: str) -> Answer:
    boxed = boxed_answer(gold)
    # A box that is empty or not closed: what is around it is not the answer.
    unboxed = "" if re.search(r"\\f?box", gold) else gold.rpartition("####")[2].strip()
    answer = expression_answer(boxed[0] if boxed else unboxed, "reference")
    if not (answer.expression.plain.text or answer.expression.plain.said) and _NOTHING.fullmatch(answer.text):
        raise GoldAnswerError(
            f"the reference answer {gold[-80:]!r} holds no expression such as '18' or '\\\\boxed{{18}}'"
        )
    return answer


def _not_one_number(gold: str) -> GoldAnswerError:
    shown = gold if len(gold) <= 80 else f"…{gold[-80:]}"
    return GoldAnswerError(f"the reference answer {shown!r} is not one number such as '1,234' or '#### 18'")
