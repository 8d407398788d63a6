r"""The final answer of a worked solution, and whether it is the right one.

`extract_answer` looks for the ways in which solutions mark their answer, from strong to weak:

1. `#### X`;
2. `The answer is: X`, `\boxed{X}` and `A: X` (also `Answer: X`), which are equally strong;
3. `**X**`, bold that holds a number and nothing else;
4. no marker: the last number, reported as the fall-back `last_number` so that it can be counted apart.

The strongest form present wins, and of several the last one, because a solution may correct itself.
Only the first solution is read: the text is cut where another question begins. A strong marker that is
followed by something other than one number (`The answer is: 5:30`, `\boxed{3, 5}`) gives the value None
rather than a number from elsewhere. Values are exact fractions and are compared without tolerance.
How a number may be written is known in `quantities`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from mce_llm.eval.markers import UNITS, find_marked
from mce_llm.eval.quantities import all_quantities, normalize, quantity_at

STYLES = ("hash", "answer_is", "boxed", "a_colon", "bold", "last_number")
"""The ways in which an answer can be found; `none` is reported when there is no number at all."""

_TIERS = (("hash",), ("answer_is", "boxed", "a_colon"), ("bold",))

_END_OF_TEXT = re.compile(
    r"</s>|<\|(?:endoftext|end_of_text|im_end|eot_id|eom_id|end|return)\|>|<eos>|<end_of_turn>|<\uff5cend"
)
_NEXT_QUESTION = re.compile(
    r"(?:^|\n)[ \t]*(?:#{1,6}[ \t]*)?(?:\*\*|__)?"
    r"(?:Question|Q|Problem|Exercise|Instruction|Input|User|Human|Task|Example|QUESTION|PROBLEM)"
    r"(?:[ \t]*#?\d+)?(?:\*\*|__)?[ \t]*:"
    r"|(?<!#)#{2,6}[ \t]*(?:Instruction|Question|Problem|Input|User|Human)\b"
    r"|(?<=\s)(?:Q|Question) ?\d*:"
    r"|Below is an instruction that describes"
    r"|<\|im_start\|>|<\|start_header_id\|>|<\|user\|>|<start_of_turn>|\[INST\]"
)
# An unlabelled next question, looked for only after a completed `#### X` or `The answer is: X`.
_ASKS = re.compile(
    r"\b(?:How (?:many|much|long|far|old|tall|fast|big)|What(?: is| was| are|'s| will))\b[^?]*\?"
)


@dataclass(frozen=True)
class Answer:
    """The answer that a text gives.

    Attributes:
        value: The exact value; None when there is no answer or it is not one number.
        text: The answer as written, e.g. `$1,080.00`.
        found_by: One of `STYLES`, or `none`.
    """

    value: Fraction | None
    text: str
    found_by: str


class GoldAnswerError(ValueError):
    """A reference answer that is not one number."""


def extract_answer(text: str, style: str | None = None) -> Answer:
    """Find the final answer of the first solution in a text.

    Args:
        text: A solution, perhaps running on into further questions.
        style: Look for this marker alone, one of `STYLES`; by default for all, strongest first.

    Returns:
        The answer and how it was found.

    Raises:
        TypeError: If `text` is not a string.
        ValueError: If `style` is unknown.
    """
    if not isinstance(text, str):
        raise TypeError(f"a solution must be a string, got {type(text).__name__}")
    if style is not None and style not in STYLES:
        raise ValueError(f"unknown answer style {style!r}; choose one of {', '.join(STYLES)}")
    for solution in _solutions(normalize(text)):
        answer = _marked_answer(solution, style)
        if answer is None and style in (None, "last_number"):
            answer = _last_number(solution)
        if answer is not None:
            return answer
        if any(character.isdigit() for character in solution):
            break  # the first solution has numbers but not the marker asked for
    return Answer(None, "", "none")


def is_correct(prediction: Answer | str, gold: str) -> bool:
    """Compare an answer with the reference, exactly.

    A percent sign counts as a unit: `50%` equals `50`, and `0.5` does not.

    Args:
        prediction: What `extract_answer` gave, or a solution or bare answer to extract it from.
        gold: The reference: a number such as `1,234`, or a GSM8K solution that ends `#### 1,234`.

    Returns:
        Whether the values are equal; False where the prediction has none.

    Raises:
        GoldAnswerError: If the reference is not one number.
        TypeError: If either is of another type.
    """
    expected = gold_value(gold)
    if isinstance(prediction, str):
        plain = normalize(prediction)
        bare = quantity_at(plain)
        if bare is not None and bare.value is not None and UNITS.fullmatch(plain[bare.end :]):
            return bare.value == expected
        prediction = extract_answer(prediction)
    if not isinstance(prediction, Answer):
        raise TypeError(f"a prediction must be an Answer or a string, got {type(prediction).__name__}")
    return prediction.value is not None and prediction.value == expected


def gold_value(gold: str) -> Fraction:
    """Read a reference answer; calculator annotations `<<…>>` are never part of it.

    Args:
        gold: A number such as `1,234`, or a solution that ends `#### 1,234`.

    Returns:
        The exact value.

    Raises:
        GoldAnswerError: If it is not one number.
        TypeError: If it is not a string.
    """
    if not isinstance(gold, str):
        raise TypeError(f"a reference answer must be a string, got {type(gold).__name__}; write '18', not 18")
    plain = normalize(gold).rpartition("####")[2]
    quantity = quantity_at(plain)
    if quantity is None or quantity.value is None or not UNITS.fullmatch(plain[quantity.end :]):
        shown = gold if len(gold) <= 80 else f"…{gold[-80:]}"
        raise GoldAnswerError(
            f"the reference answer {shown!r} is not one number such as '1,234' or '#### 18'"
        )
    return quantity.value


def _solutions(text: str) -> Iterator[str]:
    """Cut a text where a further question begins; pieces without text are left out."""
    start = 0
    for match in re.finditer(f"{_END_OF_TEXT.pattern}|{_NEXT_QUESTION.pattern}", text):
        if text[start : match.start()].strip():
            yield text[start : match.start()]
        start = match.end()
    if text[start:].strip():
        yield text[start:]


def _marked_answer(solution: str, style: str | None) -> Answer | None:
    kinds = [kind for tier in _TIERS for kind in tier if style in (None, kind)]
    found = [(kind, item) for kind in kinds for item in find_marked(solution, kind)]
    completed = [
        item.end for kind, item in found if kind in ("hash", "answer_is") and item.quantity.value is not None
    ]
    if completed and (asks := _ASKS.search(solution, min(completed))):
        found = [(kind, item) for kind, item in found if item.end <= asks.end()]
    for tier in _TIERS:
        candidates = [(kind, item) for kind, item in found if kind in tier]
        if candidates:
            # Nested markers (`The answer is: \boxed{18}`) end close together: the first kind names the answer.
            kind, item = max(candidates, key=lambda candidate: candidate[1].end)
            return Answer(item.quantity.value, item.quantity.text.strip(), kind)
    return None


def _last_number(solution: str) -> Answer | None:
    quantities = all_quantities(solution)
    return Answer(quantities[-1].value, quantities[-1].text, "last_number") if quantities else None
