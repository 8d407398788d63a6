r"""The final answer of a worked solution, and whether it is the right one.

`extract_answer` looks for the ways in which solutions mark their answer, from strong to weak:

1. `#### X`;
2. `The answer is: X`, `\boxed{X}` and `A: X` (also `Answer: X`), which are equally strong;
3. `**X**`, bold that holds a number and nothing else;
4. no marker: the last number, reported as the fall-back `last_number` so that it can be counted apart.

The strongest form present wins, and of several the last one, because a solution may correct itself; but `#### X`
ends a solution, so of these the first counts, unless what follows takes it back ("wait", "correction").
Only the first solution is read: the text is cut where another question begins. A strong marker that is
followed by something other than one number (`The answer is: 5:30`, `\boxed{3, 5}`) gives the value None
rather than a number from elsewhere. Values are exact fractions and are compared without tolerance.
How a number may be written is known in `quantities`.

With `style="math"` the answer may be any expression: it is looked for in the same ways (the fall-back is the last
formula or number), kept as written, and judged by `expressions`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from mce_llm.data.boxed import boxed_contents
from mce_llm.errors import MceLlmError
from mce_llm.eval.judging.expressions import equivalent, number_of
from mce_llm.eval.judging.latex import plain_latex
from mce_llm.eval.judging.markers import UNITS, find_marked
from mce_llm.eval.judging.math_markers import find_expressions, last_expression
from mce_llm.eval.judging.quantities import all_quantities, normalize, quantity_at

STYLES = ("hash", "answer_is", "boxed", "a_colon", "bold", "last_number")
"""The ways in which an answer can be found; `none` is reported when there is no number at all."""

_Content = TypeVar("_Content")

MATH = "math"
"""The style of answers that may be any expression."""

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
# Another story that ends in a question, in a paragraph of its own, after any completed answer.
_TELLS_AND_ASKS = re.compile(
    r"\n[ \t]*\n(?!(?:So|Now|Then|Next|Therefore|Thus|Hence|Finally|Since|We|Let|Step|To|But|Wait|However)\b)"
    r"[A-Z][^\n]{1,600}?[.!] [^\n]{0,300}?\b(?:[Hh]ow|[Ww]hat)\b[^\n?]{0,300}\?"
)
_CORRECTS = re.compile(
    r"\b(?:wait|actually|mistake|correct(?:ed|ion)|wrong|sorry|instead|re-?check)\b", re.IGNORECASE
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
        math: Whether the text is LaTeX, to be judged as an expression (see `extract_answer`).
    """

    value: Fraction | None
    text: str
    found_by: str
    math: bool = False


class GoldAnswerError(MceLlmError, ValueError):
    """A reference answer that is not one number, or for MATH none at all."""


def extract_answer(text: str, style: str | None = None) -> Answer:
    """Find the final answer of the first solution in a text.

    Args:
        text: A solution, perhaps running on into further questions.
        style: `math` for an answer that may be any expression; or one of `STYLES`, to look for this marker
            alone. By default a number is looked for, behind all markers, strongest first.

    Returns:
        The answer and how it was found.

    Raises:
        TypeError: If `text` is not a string.
        ValueError: If `style` is unknown.
    """
    if not isinstance(text, str):
        raise TypeError(f"a solution must be a string, got {type(text).__name__}")
    if style == MATH:
        return _extract_expression(text)
    if style is not None and style not in STYLES:
        raise ValueError(f"unknown answer style {style!r}; choose one of {', '.join((*STYLES, MATH))}")
    for solution in _solutions(normalize(text)):
        answer = _marked_answer(solution, style)
        if answer is None and style in (None, "last_number"):
            answer = _last_number(solution)
        if answer is not None:
            return answer
        if any(character.isdigit() for character in solution):
            break  # the first solution has numbers but not the marker asked for
    return Answer(None, "", "none")


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
    if style == MATH or (isinstance(prediction, Answer) and prediction.math) or _is_latex(gold):
        return _is_equivalent(prediction, gold_expression(gold))
    expected = gold_value(gold)
    if isinstance(prediction, str):
        plain = normalize(prediction)
        bare = quantity_at(plain)
        if bare is not None and bare.value is not None and UNITS.fullmatch(plain[bare.end :]):
            return bare.value == expected
        prediction = extract_answer(prediction)
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


def gold_expression(gold: str) -> str:
    r"""Read a reference answer of MATH.

    Args:
        gold: An expression, a solution with its answer in the last `\boxed{…}`, or one that ends `#### X`.

    Returns:
        The expression, as written.

    Raises:
        GoldAnswerError: If there is none.
        TypeError: If it is not a string.
    """
    if not isinstance(gold, str):
        raise TypeError(f"a reference answer must be a string, got {type(gold).__name__}; write '18', not 18")
    boxed = [content for content, _ in boxed_contents(gold)]
    # A box that is empty or not closed: what is around it is not the answer.
    unboxed = "" if re.search(r"\\f?box", gold) else gold.rpartition("####")[2].strip()
    expression = boxed[-1] if boxed else unboxed
    plain = plain_latex(expression)
    if not (plain.text or plain.said):
        raise GoldAnswerError(
            f"the reference answer {gold[-80:]!r} holds no expression such as '18' or '\\\\boxed{{18}}'"
        )
    return expression


def _is_latex(gold: str) -> bool:
    """Whether a reference is an expression rather than a number that is not one."""
    if not isinstance(gold, str) or not re.search(r"\\[A-Za-z]{2}|\\[{!]|\\\\", gold):
        return False
    try:
        gold_value(gold)
    except GoldAnswerError:
        return True
    return False


def _is_equivalent(prediction: Answer | str, expected: str) -> bool:
    if isinstance(prediction, str):
        if _is_bare_expression(prediction):
            return equivalent(prediction, expected)
        prediction = extract_answer(prediction, style=MATH)
    return bool(prediction.text) and equivalent(prediction.text, expected)


def _is_bare_expression(text: str) -> bool:
    """Whether a text is an answer by itself and not a solution with an answer in it."""
    one_line = len(text) <= 200 and "\n" not in text.strip() and "####" not in text
    outside = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+", "", text)
    return (
        one_line
        and "boxed" not in text
        and not re.search(r"[A-Za-z]{2,}[ :]+[A-Za-z]{2,}|\*\*|[A-Za-z]:", outside)
    )


def _extract_expression(text: str) -> Answer:
    for solution in _solutions(text.replace("\r", "\n")):
        marked = [
            (kind, item) for tier in _TIERS for kind in tier for item in find_expressions(solution, kind)
        ]
        answer = _strongest([(kind, item.end, item.text) for kind, item in marked], solution)
        if answer is None and (fall_back := last_expression(solution)):
            answer = ("last_number", fall_back.text)
        if answer is not None:
            kind, latex = answer
            return Answer(number_of(latex), latex, kind, math=True)
    return Answer(None, "", "none", math=True)


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
    strongest = _strongest(
        [(kind, item.end, item.quantity) for kind, item in found],
        solution,
        completed=lambda quantity: quantity.value is not None,
    )
    if strongest is None:
        return None
    kind, quantity = strongest
    return Answer(quantity.value, quantity.text.strip(), kind)


def _strongest(
    found: list[tuple[str, int, _Content]], solution: str, completed: Callable[[_Content], bool] = bool
) -> tuple[str, _Content] | None:
    """Choose among marked answers (kind, end, content): the strongest kind, and of that the last."""
    ends = {
        kind: [end for each, end, content in found if each == kind and completed(content)] for kind in STYLES
    }
    limits = [
        asks.end()
        for kinds, pattern in ((("hash", "answer_is"), _ASKS), (("boxed", "a_colon"), _TELLS_AND_ASKS))
        if (earliest := min((min(ends[kind]) for kind in kinds if ends[kind]), default=None)) is not None
        and (asks := pattern.search(solution, earliest))
    ]
    # `#### X` ends a solution: a second one is that of a run-on, unless words between them take the first back.
    if len(ends["hash"]) > 1 and not _CORRECTS.search(solution, ends["hash"][0], ends["hash"][-1]):
        limits.append(ends["hash"][0])
    found = [item for item in found if item[1] <= min(limits, default=len(solution))]
    for tier in _TIERS:
        candidates = [item for item in found if item[0] in tier]
        if candidates:
            # Nested markers (`The answer is: \boxed{18}`) end close together: the first kind names the answer.
            kind, _, content = max(candidates, key=lambda candidate: candidate[1])
            return kind, content
    return None


def _last_number(solution: str) -> Answer | None:
    quantities = all_quantities(solution)
    return Answer(quantities[-1].value, quantities[-1].text, "last_number") if quantities else None
