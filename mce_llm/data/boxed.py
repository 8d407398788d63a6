r"""What stands in `\boxed{…}`: read by the data (references of MATH) and by the evaluation (answers).

Standard library only. What the content means is decided in `mce_llm.eval`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

LONGEST_CONTENT = 1000  # characters; longer is a degenerate generation, not an answer

_BOX = re.compile(
    r"\\(?:f?boxed|fbox)\s*"
    r"(?:(?P<brace>\{)|(?P<bare>-?\\?\$?\.?\d[\d,]*(?:\.\d+)?|\\[a-z]+(?:\{[^{}]*\}|\d)*))"
)
_BRACE = re.compile(r"\\(?:f?boxed|fbox)\b|\\.|[{}]", re.DOTALL)


# What stands between the boxes of several answers; a name may come first, as in "x = \boxed{3} or x = \boxed{-2}".
_JOINS = re.compile(
    r"[\s$]*(?:\\[)\]])?\s*(?:\\(?:text|quad|mathrm)\b\s*\{?|[,\s])*(?:\b(?:and|or)\b|,)[\s$}]*(?:\\(?:quad|[(\[ ,;])\s*)*"
    r"[\s$]*(?:[A-Za-z](?:_\{?\d\}?)?\s*=\s*)?"
)


# What one answer in two notations may differ by: "18 or \$18", "1,000 or 1000".
_DRESS = re.compile(r"\\?[$%]|\\[!,;: ]|(?<=\d),(?=\d{3}(?!\d))")
_PLAIN_FRACTION = re.compile(r"(-?)(?:\\[dt]?frac\s*\{(?=\d+\}\{\d+\}$))?(\d+)(?:\}\{|/)(\d+)\}?")
_PLAIN_NUMBER = re.compile(r"-?\d{1,100}(?:\.\d{1,100})?")


class Box(NamedTuple):
    """A box: what stands in it, without spaces around, and where the box and its content begin and end in the text."""

    content: str
    start: int
    end: int
    place: slice


def boxes(text: str) -> Iterator[Box]:
    r"""Give each `\boxed{…}`, `\boxed 5` and `\fbox{…}` of a text; of nested ones the innermost.

    Args:
        text: A solution.

    Yields:
        The boxes in order. One that is empty or not closed is left out.
    """
    for match in _BOX.finditer(text):
        if match["bare"]:
            yield Box(match["bare"], match.start(), match.end(), slice(*match.span("bare")))
            continue
        end = closing_brace(text, match.end())
        if end is not None and (content := text[match.end() : end - 1].strip()):
            first = text.index(content, match.end())
            yield Box(content, match.start(), end, slice(first, first + len(content)))


def are_joined(text: str, before: Box, start: int) -> bool:
    r"""Whether a box is joined to the one before it as another answer: `\boxed{3}` and `\boxed{-2}`.

    Args:
        text: The solution.
        before: The box before.
        start: Where the box begins.
    """
    return _JOINS.fullmatch(text, before.end, start) is not None


def boxed_answer(text: str) -> tuple[str, slice] | None:
    r"""Return what the last box of a solution gives as the answer, with the boxes that are joined to it; None without a box.

    Args:
        text: A solution.

    Returns:
        The contents, each value once, with commas between them, and the place from the first to the end of the last.
    """
    joined: list[Box] = []
    for box in boxes(text):
        joined = [*joined, box] if joined and are_joined(text, joined[-1], box.start) else [box]
    if not joined:
        return None
    contents: dict[Fraction | str, str] = {}
    for box in joined:
        contents.setdefault(worth_of(box.content), box.content)
    return ", ".join(contents.values()), slice(joined[0].place.start, joined[-1].place.stop)


def worth_of(content: str) -> Fraction | str:
    """Return what the content of a box is compared by: the value of a plain number or fraction, or the text without its dress."""
    plain = _DRESS.sub("", content).strip()
    if number := _PLAIN_FRACTION.fullmatch(plain):
        sign, upper, lower = number.groups()
        return Fraction(f"{sign}{upper}/{lower}") if int(lower) else plain
    return Fraction(plain) if _PLAIN_NUMBER.fullmatch(plain) else plain


def closing_brace(text: str, position: int) -> int | None:
    r"""Return where the braces end that were opened just before `position`.

    Args:
        text: LaTeX; `\{` and `\}` are brackets of the answer, not of LaTeX.
        position: Behind an opening brace.

    Returns:
        The place behind the closing brace; None where there is none within `LONGEST_CONTENT`, or another box begins before.
    """
    depth = 1
    for match in _BRACE.finditer(text, position, position + LONGEST_CONTENT):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if not depth:
                return match.end()
        elif len(match[0]) > 2:
            return None
    return None
