"""Numbers in English words, read into exact fractions: eighteen, two and a half, two-thirds, a dozen, one point five.

Digits are read by `quantities`, and what stands behind a number and would change it is known there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen"
)
_UNITS = {word: value for value, word in enumerate(_SMALL.split())}
_TENS = {
    word: 10 * value
    for value, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
_SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "lakh": 10**5,
    "crore": 10**7,
}
DENOMINATORS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
DENOMINATORS |= {
    f"{name}{plural}": value
    for value, name in enumerate(
        ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"],
        start=3,
    )
    for plural in ("", "s")
}
DENOMINATORS |= {
    f"{name}{plural}": value
    for name, value in (("twentieth", 20), ("hundredth", 100), ("thousandth", 1000))
    for plural in ("", "s")
}
_GROUPS = {"dozen": 12, "dozens": 12, "score": 20}
_WORD = re.compile(r"(?P<gap>\s*-\s*|\s+|)(?P<word>[A-Za-z]+)(?![\w'])")
NUMBER_WORD = "|".join([*_UNITS, *_TENS, *_SCALES, *_GROUPS, *DENOMINATORS])
"""A pattern of the words that numbers are made of."""


@dataclass(frozen=True)
class WordNumber:
    """A number in words: its exact value, and where it ends in the text."""

    value: Fraction
    end: int


class _Words:
    """The words of a text from a place on, one after the other."""

    def __init__(self, text: str, position: int):
        self.text = text
        self.end = position  # of what was taken
        self._first = position

    def peek(self, *skipped: str) -> tuple[str, int]:
        """Return the next word in lower case, and where it ends, once `skipped` words are passed over in this order."""
        position = self.end
        for expected in (*skipped, None):
            match = _WORD.match(self.text, position)
            if match is None or (not match["gap"] and position != self._first):
                return "", position
            word, position = match["word"].lower(), match.end()
            if expected is None:
                return word, position
            if word != expected:
                return "", position
        raise AssertionError("unreachable")

    def take(self, end: int) -> None:
        self.end = end


def read_words(text: str, position: int = 0) -> WordNumber | None:
    """Read the number in words that a text opens with.

    Args:
        text: A text; what stands before the number has been passed over.
        position: Where the number begins.

    Returns:
        The number, or None where the text opens with another word.
    """
    words = _Words(text, position)
    sign = 1
    word, end = words.peek()
    if word in ("minus", "negative"):
        sign = -1
        words.take(end)
        word, end = words.peek()
    value = _amount(words)
    return None if value is None else WordNumber(sign * value, words.end)


def fraction_words(text: str, position: int) -> WordNumber | None:
    """Read a part in words, such as `a half`, `three quarters` or `one third`, that a text goes on with."""
    words = _Words(text, position)
    value = _part(words)
    return None if value is None else WordNumber(value, words.end)


def _amount(words: _Words) -> Fraction | None:
    part = _part(words)
    if part is not None:
        return _scaled(words, part)
    word, end = words.peek()
    if word in ("a", "an"):
        following, _ = words.peek(word)
        if following not in (*_SCALES, "dozen"):
            return None
        words.take(end)
        total: Fraction | None = Fraction(1)
        word, end = words.peek()
        if word == "dozen":
            return _scaled(words, Fraction(1))
    total = _cardinal(words)
    if total is None:
        return None
    for joined in (("point",), ("and",)):
        following, _ = words.peek(*joined)
        if following and joined == ("point",):
            total = _decimals(words, total)
        elif following:
            before = words.end
            words.take(words.peek()[1])
            more = _part(words)
            if more is None or more >= 1:
                words.take(before)
            else:
                total += more
    return _scaled(words, total)


def _cardinal(words: _Words) -> Fraction | None:
    """Read a whole number: eighteen, one hundred and five, twenty-one, a thousand."""
    total = group = 0
    seen = False
    last = ""
    while True:
        word, end = words.peek()
        if word == "and" and seen:
            word, end = words.peek("and")
            if not (word in _UNITS or word in _TENS) or last not in _SCALES:
                break
        if word in _UNITS:
            if last in _UNITS or (last in _TENS and not 0 < _UNITS[word] < 10):
                break
            group += _UNITS[word]
        elif word in _TENS:
            if last in _UNITS or last in _TENS:
                break
            group += _TENS[word]
        elif word == "hundred":
            group = (group or 1) * 100
        elif word in _SCALES:
            total, group = total + (group or 1) * _SCALES[word], 0
        else:
            break
        words.take(end)
        seen, last = True, word
    return Fraction(total + group) if seen else None


def _part(words: _Words) -> Fraction | None:
    """Read a part of one: half, a quarter, two-thirds; of these `two fifth` and `the fifth` are none."""
    before = words.end
    word, end = words.peek()
    if word == "half":
        words.take(end)
        for skipped in (("of", "a"), ("a",), ("an",)):
            if words.peek(*skipped)[0] in (*_SCALES, *_GROUPS):
                for _ in skipped:
                    words.take(words.peek()[1])
                break
        return Fraction(1, 2)
    if word in ("a", "an"):
        words.take(end)
        count = Fraction(1)
    else:
        cardinal = _cardinal(words)
        if cardinal is None:
            return None
        count = cardinal
    name, end = words.peek()
    plural = name.endswith("s") or name == "halves"
    if name in DENOMINATORS and plural == (count != 1) and count:
        words.take(end)
        return count / DENOMINATORS[name]
    words.take(before)
    return None


def _decimals(words: _Words, whole: Fraction) -> Fraction:
    """Read `point two five` behind a whole number."""
    before = words.end
    words.take(words.peek()[1])
    place, value, seen = Fraction(1), whole, False
    while (word := words.peek())[0] in _UNITS and _UNITS[word[0]] < 10:
        place /= 10
        value += place * _UNITS[word[0]]
        seen = True
        words.take(word[1])
    if not seen:
        words.take(before)
        return whole
    return value


def _scaled(words: _Words, value: Fraction) -> Fraction:
    """Multiply by what follows: two and a half million, three dozen, half a dozen."""
    while True:
        word, end = words.peek()
        factor = _SCALES.get(word) or _GROUPS.get(word)
        if factor is None:
            return value
        words.take(end)
        if word in ("dozen", "dozens") and (half := words.peek("and", "a"))[0] == "half":
            words.take(half[1])
            value += Fraction(1, 2)
        value *= factor
