"""The final answer of a worked solution, and whether it is the right one.

Every text becomes an `Answer` once: a solution by `extract_answer` (how, is told in `judging.solutions`), a reference
by `read_reference`. Two answers are compared by `same_answer`, wherever they come from. `is_correct` and `judge` are
these steps in a row, and tasks, metrics, votes and lm-eval's tasks take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mce_llm.eval.judging.answer import MATH, STYLES, Answer
from mce_llm.eval.judging.expressions import same_meaning
from mce_llm.eval.judging.references import GoldAnswerError, gold_expression, gold_value, read_reference
from mce_llm.eval.judging.solutions import extract_answer, read_prediction

__all__ = [
    "MATH",
    "STYLES",
    "Answer",
    "GoldAnswerError",
    "Verdict",
    "extract_answer",
    "gold_expression",
    "gold_value",
    "is_correct",
    "judge",
    "read_reference",
    "same_answer",
]


@dataclass(frozen=True)
class Verdict:
    """The answer of a solution, and whether it is the right one."""

    answer: Answer
    correct: bool


def judge(
    solution: str, gold: str, style: str | None = None, *, thinking_tags: Sequence[str] = ()
) -> Verdict:
    """Find the final answer of a solution and compare it with the reference.

    Args:
        solution: As for `extract_answer`.
        gold: As for `is_correct`.
        style: As for `extract_answer`.
        thinking_tags: As for `extract_answer`.

    Returns:
        The answer and the verdict; the errors are those of `extract_answer` and `is_correct`.
    """
    answer = extract_answer(solution, style, thinking_tags=thinking_tags)
    return Verdict(answer, is_correct(answer, gold))


def is_correct(prediction: Answer | str, gold: str, style: str | None = None) -> bool:
    r"""Compare an answer with the reference, exactly.

    A percent sign counts as a unit: `50%` equals `50`, and `0.5` does not. An answer that was extracted with
    `style="math"` is compared as an expression (see `expressions`), and so is every answer where the reference is
    LaTeX and not one number, such as `\frac{\sqrt{3}}{2}` or a solution with its answer in `\boxed{…}`.

    Args:
        prediction: What `extract_answer` gave, or a solution or bare answer to extract it from.
        gold: The reference: a number such as `1,234`, a GSM8K solution that ends `#### 1,234`, or for MATH an
            expression or a solution with a box.
        style: `math` to compare as expressions whatever is given.

    Returns:
        Whether they are equal; False where there is no answer.

    Raises:
        GoldAnswerError: If the reference is not one number, or for MATH is empty.
        EvaluationError: If math-verify is needed for MATH and not installed.
        TypeError: If either is of another type.
        ValueError: If `style` is unknown.
    """
    if style not in (None, MATH):
        raise ValueError(f"unknown answer style {style!r}; answers are compared as numbers, or with {MATH!r}")
    if not isinstance(prediction, Answer | str):
        raise TypeError(f"a prediction must be an Answer or a string, got {type(prediction).__name__}")
    math = style == MATH or (isinstance(prediction, Answer) and prediction.math)
    reference = read_reference(gold, MATH if math else None)
    if isinstance(prediction, str):
        if reference.math and prediction.strip() == gold.strip():
            return True  # words such as "II and III" are an answer where they are the reference
        prediction = read_prediction(prediction, MATH if reference.math else None)
    return same_answer(prediction, reference)


def same_answer(answer: Answer, other: Answer) -> bool:
    """Compare two answers: as expressions where one of them is LaTeX, else their values, exactly.

    Args:
        answer: An answer.
        other: Another, or the reference; `x = 5` answers the reference `5`, but `5` does not answer `x > 4`.

    Returns:
        Whether they are the same; False where one of them is missing.

    Raises:
        EvaluationError: If math-verify is needed and not installed.
    """
    if answer.math or other.math:
        return same_meaning(answer.expression, other.expression)
    return answer.value is not None and answer.value == other.value
