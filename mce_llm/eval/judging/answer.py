"""An answer as it was read: what later steps need of it, so that none of them reads the text again."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from mce_llm.eval.judging.markers import UNITS
from mce_llm.eval.judging.quantities import quantity_at
from mce_llm.eval.judging.reading import Expression, read_expression

STYLES = ("hash", "answer_is", "boxed", "answer_tag", "a_colon", "bold", "last_number")
"""The ways in which an answer can be found; `none` is reported when there is no number at all, and `thinking` where a text
ends inside a block of thoughts."""

MATH = "math"
"""The style of answers that may be any expression."""


@dataclass(frozen=True)
class Answer:
    """The answer that a text gives.

    Attributes:
        value: The exact value; None when there is no answer or it is not one number.
        text: The answer as written, e.g. `$1,080.00`.
        found_by: One of `STYLES`, `none` or `thinking`; `bare` for a text that is nothing but the answer, `reference` for a
            reference.
        math: Whether the text is LaTeX, to be judged as an expression (see `extract_answer`).
    """

    value: Fraction | None
    text: str
    found_by: str
    math: bool = False

    @property
    def expression(self) -> Expression:
        """The text, read as LaTeX."""
        return read_expression(self.text)

    @property
    def is_fallback(self) -> bool:
        """Whether it is the last number or formula of a text without markers."""
        return self.found_by == "last_number"

    @property
    def is_missing(self) -> bool:
        """Whether the text gives no answer, though its thoughts have ended."""
        return self.found_by == "none"

    @property
    def is_unfinished(self) -> bool:
        """Whether the text ends inside a block of thoughts, so that there is no answer yet."""
        return self.found_by == "thinking"


def number_alone(plain: str, found_by: str) -> Answer | None:
    """Read a text that is one number, perhaps with a unit, and nothing else.

    Args:
        plain: Normalised text (see `quantities.normalize`).
        found_by: As for `Answer`.

    Returns:
        The answer, or None where the text is anything else.
    """
    quantity = quantity_at(plain)
    if quantity is None or quantity.value is None or not UNITS.fullmatch(plain[quantity.end :]):
        return None
    return Answer(quantity.value, quantity.text.strip(), found_by)


def expression_answer(latex: str, found_by: str) -> Answer:
    """Return the answer that an expression is.

    Args:
        latex: The expression, as written.
        found_by: As for `Answer`.

    Returns:
        The answer, with a value where the expression is one number.
    """
    return Answer(read_expression(latex).value, latex, found_by, math=True)
