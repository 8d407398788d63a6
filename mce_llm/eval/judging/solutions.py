r"""The final answer of a worked solution: where it stands, and how it is read.

`extract_answer` judges what stands outside of a model's thoughts (`reasoning`), reads the first solution only
(`run_ons`), and looks for the ways in which solutions mark their answer, from strong to weak:

1. `#### X`, as GSM8K's own solutions end;
2. `The answer is: X`, `\boxed{X}`, `<answer>X</answer>` and `A: X` (also `Answer: X`), which are equally strong;
3. `#### ` with words before the number, which is as often a heading;
4. `**X**`, bold that holds a number and nothing else;
5. no marker: the last number, reported as the fall-back `last_number` so that it can be counted apart.

The strongest form present wins, and of several the last one, because a solution may correct itself; but `#### X`
ends a solution, so of these the first counts, unless what follows takes it back ("wait", "oops"). A marker that holds no
answer is none: `#### Verification` and `#### Case 2` are headings, and `#### 16 eggs in total` is one where a box or
"the answer is" follows. A strong marker that is followed by something other than one number (`The answer is: 5:30`,
`\boxed{3, 5}`) gives the value None rather than a number from elsewhere. Values are exact fractions and are compared
without tolerance. How a number may be written is known in `quantities` and `number_words`.

With `style="math"` the answer may be any expression: it is looked for in the same ways (the fall-back is the last
formula or number), kept as written, and judged by `expressions`.

The time that this takes grows with the length of a text and no faster: markers are read from the last on, and only until
one holds an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mce_llm.eval.judging.answer import MATH, STYLES, Answer, expression_answer, number_alone
from mce_llm.eval.judging.headings import without_headings
from mce_llm.eval.judging.markers import Found, Solution, find_last_marked, find_marked
from mce_llm.eval.judging.math_markers import (
    FoundExpression,
    find_expressions,
    find_last_expressions,
    last_expression,
)
from mce_llm.eval.judging.quantities import last_quantity, normalize
from mce_llm.eval.judging.reasoning import outside_of_thought
from mce_llm.eval.judging.run_ons import next_question, next_story, solutions, takes_back

# What markers are looked for with; expressions are kept as they are written but for this.
_PUNCTUATION = str.maketrans("\r：；！？＝（）。，", "\n:;!?=().,")
_EQUALLY_STRONG = ("answer_is", "boxed", "answer_tag", "a_colon")
_Found = TypeVar("_Found", Found, FoundExpression)


@dataclass(frozen=True)
class _Reading(Generic[_Found]):
    """How the answers of a style are found, and what is made of one."""

    forward: Callable[[Solution, str], Iterator[_Found]]
    backward: Callable[[Solution, str, int], Iterator[_Found]]
    is_complete: Callable[[_Found], bool]
    answer: Callable[[_Found, str], Answer]
    fall_back: Callable[[str], Answer | None]


def extract_answer(text: str, style: str | None = None, *, thinking_tags: Sequence[str] = ()) -> Answer:
    """Find the final answer of the first solution in a text.

    Args:
        text: What a model wrote: a solution, perhaps behind its thoughts (`<think>…</think>`), perhaps running on into further
            questions.
        style: `math` for an answer that may be any expression; or one of `STYLES`, to look for this marker
            alone. By default a number is looked for, behind all markers, strongest first.
        thinking_tags: Further tags around thoughts: names (`ponder` for `<ponder>…</ponder>`), or an opening and a
            closing tag with a space between. Those of the common models are known.

    Returns:
        The answer and how it was found; `thinking` where the text ends inside a block of thoughts.

    Raises:
        TypeError: If `text` is not a string.
        ValueError: If `style` is unknown, or a tag says nothing.
    """
    if not isinstance(text, str):
        raise TypeError(f"a solution must be a string, got {type(text).__name__}")
    if style not in (None, MATH, *STYLES):
        raise ValueError(f"unknown answer style {style!r}; choose one of {', '.join((*STYLES, MATH))}")
    said = outside_of_thought(text, thinking_tags)
    math = style == MATH
    if said.unfinished:
        return Answer(None, "", "thinking", math=math)
    if math:
        return _extract(said.text.translate(_PUNCTUATION), _EXPRESSIONS, STYLES)
    return _extract(normalize(said.text), _NUMBERS, STYLES if style is None else (style,))


def read_prediction(text: str, style: str | None, *, thinking_tags: Sequence[str] = ()) -> Answer:
    """Read a text that is an answer by itself, or else a solution with an answer in it.

    Args:
        text: A bare answer such as `18 dollars` or `(3, 4)`, or a solution.
        style: `math` for an answer that may be any expression; by default a number.
        thinking_tags: As for `extract_answer`.

    Returns:
        The answer.
    """
    if style == MATH:
        if _is_bare_expression(text):
            return expression_answer(text, "bare")
        return extract_answer(text, MATH, thinking_tags=thinking_tags)
    return number_alone(normalize(text), "bare") or extract_answer(text, thinking_tags=thinking_tags)


def _is_bare_expression(text: str) -> bool:
    """Whether a text is an answer by itself and not a solution with an answer in it."""
    one_line = len(text) <= 200 and "\n" not in text.strip() and "####" not in text
    outside = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+", "", text)
    return (
        one_line
        and "boxed" not in text
        and not re.search(r"[A-Za-z]{2,}[ :]+[A-Za-z]{2,}|\*\*|[A-Za-z]:|</?[A-Za-z]+>", outside)
    )


def _extract(text: str, reading: _Reading[_Found], kinds: Sequence[str]) -> Answer:
    whole = Solution(text)
    ends = [
        found.end
        for kind in ("hash", *_EQUALLY_STRONG)
        if (found := _first(whole, reading, kind)) is not None
    ]
    for piece in solutions(text, min(ends, default=None)):
        solution = whole if len(piece) == len(text) else Solution(piece)
        chosen = _strongest(solution, reading, kinds)
        if chosen is not None:
            kind, found = chosen
            return reading.answer(found, kind)
        if "last_number" in kinds and (fall_back := reading.fall_back(piece)) is not None:
            return fall_back
        if kinds != STYLES and any(character.isdigit() for character in piece):
            break  # the first solution has numbers but not the marker asked for
    return Answer(None, "", "none", math=reading is _EXPRESSIONS)


def _first(solution: Solution, reading: _Reading[_Found], kind: str) -> _Found | None:
    """The first answer that a kind of marker completes; a heading completes none."""
    return next(
        (found for found in reading.forward(solution, kind) if found.rank < 3 and reading.is_complete(found)),
        None,
    )


def _strongest(
    solution: Solution, reading: _Reading[_Found], kinds: Sequence[str]
) -> tuple[str, _Found] | None:
    """Choose among the marked answers: the strongest kind, and of that the last, but the first `####`."""
    first = {kind: _first(solution, reading, kind) for kind in ("hash", *_EQUALLY_STRONG) if kind in kinds}
    limit = len(solution.text)
    final = first.get("hash")
    if final is not None:
        final, taken = _final_hash(solution, reading, final)
        if taken:
            limit = final.end
        first["hash"] = final
    for asking, begins in ((next_question, ("hash", "answer_is")), (next_story, _EQUALLY_STRONG[1:])):
        ends = [found.end for kind in begins if (found := first.get(kind)) is not None]
        if not ends:
            continue
        asked = asking(solution.text, min(ends))
        if asked is not None and not takes_back(solution.text, min(ends), asked):
            limit = min(limit, asked)

    def last(kind: str) -> _Found | None:
        return next(reading.backward(solution, kind, limit), None) if kind in kinds else None

    strong = [(kind, found) for kind in _EQUALLY_STRONG if (found := last(kind)) is not None]
    # Nested markers (`The answer is: \\boxed{18}`) end close together: the first kind names the answer.
    best = max(strong, key=lambda item: item[1].end) if strong else None
    hashed = final if final is not None else last("hash")
    if hashed is not None and (
        best is None
        or hashed.rank == 0
        or (best[1].end <= hashed.end and hashed.rank < (2 if best[0] == "boxed" else 3))
    ):
        return "hash", hashed
    if best is not None:
        return best
    bold = last("bold")
    return None if bold is None else ("bold", bold)


def _final_hash(solution: Solution, reading: _Reading[_Found], first: _Found) -> tuple[_Found, bool]:
    """The `#### X` that ends the solution: the first, or the last of those that take back the one before.

    Returns:
        The answer, and whether another follows that is none of this solution.
    """
    final = first
    for found in reading.forward(solution, "hash"):
        if found.end <= final.end or found.rank > 2 or not reading.is_complete(found):
            continue
        if not takes_back(solution.text, final.end, found.end):
            return final, True
        final = found
    return final, False


def _is_number(found: Found) -> bool:
    return found.quantity.value is not None


def _number_answer(found: Found, kind: str) -> Answer:
    return Answer(found.quantity.value, found.quantity.text.strip(), kind)


def _last_number(solution: str) -> Answer | None:
    quantity = last_quantity(without_headings(solution))
    return Answer(quantity.value, quantity.text, "last_number") if quantity else None


def _has_text(found: FoundExpression) -> bool:
    return bool(found.text)


def _expression(found: FoundExpression, kind: str) -> Answer:
    return expression_answer(found.text, kind)


def _last_expression(solution: str) -> Answer | None:
    found = last_expression(without_headings(solution))
    return None if found is None else expression_answer(found.text, "last_number")


_NUMBERS: _Reading[Found] = _Reading(find_marked, find_last_marked, _is_number, _number_answer, _last_number)
_EXPRESSIONS: _Reading[FoundExpression] = _Reading(
    find_expressions, find_last_expressions, _has_text, _expression, _last_expression
)
