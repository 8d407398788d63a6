r"""The final answer of a worked solution: where it stands, and how it is read.

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
from typing import TypeVar

from mce_llm.eval.judging.answer import MATH, STYLES, Answer, expression_answer, number_alone
from mce_llm.eval.judging.markers import find_marked
from mce_llm.eval.judging.math_markers import find_expressions, last_expression
from mce_llm.eval.judging.quantities import all_quantities, normalize

_Content = TypeVar("_Content")
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
    return _extract_number(normalize(text), style)


def read_prediction(text: str, style: str | None) -> Answer:
    """Read a text that is an answer by itself, or else a solution with an answer in it.

    Args:
        text: A bare answer such as `18 dollars` or `(3, 4)`, or a solution.
        style: `math` for an answer that may be any expression; by default a number.

    Returns:
        The answer.
    """
    if style == MATH:
        return expression_answer(text, "bare") if _is_bare_expression(text) else _extract_expression(text)
    plain = normalize(text)
    return number_alone(plain, "bare") or _extract_number(plain, None)


def _is_bare_expression(text: str) -> bool:
    """Whether a text is an answer by itself and not a solution with an answer in it."""
    one_line = len(text) <= 200 and "\n" not in text.strip() and "####" not in text
    outside = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+", "", text)
    return (
        one_line
        and "boxed" not in text
        and not re.search(r"[A-Za-z]{2,}[ :]+[A-Za-z]{2,}|\*\*|[A-Za-z]:", outside)
    )


def _extract_number(plain: str, style: str | None) -> Answer:
    for solution in _solutions(plain):
        answer = _marked_answer(solution, style)
        if answer is None and style in (None, "last_number"):
            answer = _last_number(solution)
        if answer is not None:
            return answer
        if any(character.isdigit() for character in solution):
            break  # the first solution has numbers but not the marker asked for
    return Answer(None, "", "none")


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
            return expression_answer(latex, kind)
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
