"""Where the numbers of a solution stand in its text, and which of them are results. Standard library only."""

from __future__ import annotations

import re
from typing import NamedTuple

# Digits, perhaps in groups of three by commas, perhaps with decimals; or decimals alone.
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
_NUMERAL = re.compile(rf"(?:{_DECIMAL})(?:/(?:{_DECIMAL}))*(?:\\?%)?")
# What may stand between an equals sign and the number that it gives: a sign and a currency, in either order.
_EQUALS = re.compile(r"(?<![<>!=:≠])=\s*(?:[-+−]\s*)?(?:\\?\$|[€£¥₹]\s*)?(?:[-+−]\s*)?$")
_LONGEST_LEAD = 24  # characters in front of a number in which the equals sign is looked for


class Numeral(NamedTuple):
    """A number as it is written.

    Attributes:
        start: Its first character.
        end: Behind its last.
        result: Whether it stands directly behind `=`.
    """

    start: int
    end: int
    result: bool


def numerals(text: str) -> list[Numeral]:
    r"""Find the maximal numeric literals of a text.

    A literal is `18`, `1,234.5`, `.5`, `3/4`, `50%` or `50\%`: digits (of any script), thousands in groups of three, decimals,
    quotients of such that are written without spaces, and a per cent sign at the end. Signs, currencies and units are no part of
    it, and number words are no literals. `1,2,3` is three of them, `1,234` is one.

    It is a result where nothing but spaces, one sign and one currency (`$`, `\$`, `€`, `£`, `¥`, `₹`) stand between it and an
    equals sign; that of `<=`, `>=`, `!=`, `:=` and the second of `==` is none.

    Args:
        text: Any text.

    Returns:
        The literals in order; no two share a character.
    """
    found = []
    for match in _NUMERAL.finditer(text):
        lead = text[max(0, match.start() - _LONGEST_LEAD) : match.start()]
        found.append(Numeral(match.start(), match.end(), _EQUALS.search(lead) is not None))
    return found
