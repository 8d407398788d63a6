r"""Numbers as people and models write them, read into exact fractions.

`normalize` brings LaTeX and Unicode spellings to one plain form, `quantity_at` reads the number that
opens a text, and `all_quantities` finds every number in it. What marks a number as *the answer* is
decided in `answers`; nothing here knows about questions or solutions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST_NUMBER = 200  # characters; a longer run of digits is a degenerate generation, not an answer

_CURRENCY = r"(?:(?:\b(?:US|AU|CA|NZ|HK|A|C))?[$€£¥₹¢]|\b(?:USD|EUR|GBP|INR|Rs\.?)(?=[\s\d]))"
_DIGITS = (
    r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d|,\d)"  # 1,234,567 and 1,00,000
    r"|\d{1,3}(?: \d{3})+(?![\d,]|\s?/)"  # 1 234 567
    r"|\d+)"
)
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{{1,3}}(?![A-Za-z\d]))?"
_NUMBER = re.compile(
    r"(?P<whole>\d+) (?:and )?(?P<upper>\d+) ?/ ?(?P<lower>\d+)(?![\d/])"
    rf"|(?P<number>{_DECIMAL})(?: ?/ ?(?P<divisor>{_DECIMAL}))?"
)
_LEAD = re.compile(
    r"(?:\n\s*[-+•]\s+|[\s:=~≈\"'`*_(\[{“”‘’]|\\(?:f?boxed|fbox)\b"
    r"|(?:approximately|approx\.?|about|roughly|around|exactly|only|just|equal to|equals|thus|therefore,?"
    r"|simply|a total of|now|still|be|is|also|the number|at least)(?![\w'])"
    r"|(?<![A-Za-z])[A-H][.):]+[\s*_]*(?=[-$]*\.?\d)"  # the letter of "(B) 18"
    r")*",
    re.IGNORECASE,
)
_SIGN = re.compile(
    rf"(?P<sign>[-+] ?|negative |minus )?(?:{_CURRENCY}\s?){{0,3}}(?P<inner>-)?(?=\.?\d)", re.IGNORECASE
)
_START = re.compile(
    rf"(?P<sign>(?<![\w)\]}}%])(?<![\d)%] )-)?(?:{_CURRENCY} ?){{0,3}}(?P<inner>(?<=[$€£¥₹])-)?"
    r"(?<![\w^])(?=\d|(?<!\.)\.\d)"
)
_SCALE = re.compile(r"\s?-?(thousand|million|billion|trillion)\b", re.IGNORECASE)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_THOUSANDS_LETTER = re.compile(r"k(?![A-Za-z\d])|(?P<money>(?:K|M|bn|B)(?![A-Za-z\d]))")
_MONEY_LETTERS = {"K": 10**3, "M": 10**6, "bn": 10**9, "B": 10**9}  # of metres or kelvins where no money is
_DOLLARS_AND_CENTS = re.compile(r" dollars?,? (?:and )?(\d{1,2}) cents?\b", re.IGNORECASE)
# What follows a number and makes it part of something that is not one number.
_NOT_ONE_NUMBER = re.compile(
    r":\d+"  # a time or a ratio
    r"|(?:,\d+)+"  # 1,2 or 12,50: a list, or a decimal comma; either reading could be wrong
    r"| ?/ ?\d+(?:/\d+)*"  # a date
    r"|\^[^\s°]+"  # a power
    r"|'\d+"  # feet and inches
    r"|\s?\\(?:pi|sqrt|ln|log|sin|cos|tan|frac|binom|infty|pm)\b|\s?[π√±]"
    r"| (?:hours?|hrs?|minutes?|mins?|days?|weeks?|months?|years?|feet|foot|ft|yards?|pounds?|lbs?),?"
    r" (?:and )?\d+ (?:minutes?|mins?|seconds?|hours?|days?|weeks?|months?|inch(?:es)?|in|feet|foot|oz|ounces?)\b",
    re.IGNORECASE,
)

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)
_SMALL += " seventeen eighteen nineteen"
_WORD_VALUES = {word: value for value, word in enumerate(_SMALL.split())}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORD_VALUES |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}
_ANY_WORD = "|".join(sorted([*_WORD_VALUES, "hundred", "thousand", "million"], key=len, reverse=True))
_NUMBER_WORDS = re.compile(
    rf"(?P<words>(?:(?:{_ANY_WORD})(?:[- ](?:and )?|(?![A-Za-z])))+)(?![A-Za-z]*\d)", re.IGNORECASE
)

_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5"}
_VULGAR |= {"⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2008\t", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        "\uff1a": ":",
        "\uff1d": "=",
        "\uff05": "%",
        "\uff0c": ", ",
        "\uff0e": ".",
        "\u3002": ". ",
        "\uff04": "$",
        "\u2044": "/",
        "\r": "\n",
    }
)
# Applied in this order; each takes text that the ones before it have already simplified.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"<<[^<>\n]*>>|<<[^<>\n]*$", ""),  # calculator annotations, the last perhaps cut off
        (r"\\\\", " "),
        (r"\\!", ""),
        (r"\{([,.])\}", r"\1"),
        (r"(?<=\d)'(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)(?:\\[,;: ]|[\u2009\u202f])(?=\d{3}(?!\d))", ""),
        (r"\\[,;:> ]|\\q?quad\b|[\u2009\u202f]|\\(?:left|right|displaystyle)\b", " "),
        (r"\\([$%#&])", r"\1"),
        (r"\\[()\[\]]", " "),
        (r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathit|mbox|bf)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\\degree\b", "°"),
        (r"\\(?:times|cdot|ast)\b", "×"),
        (r"\\div\b", "÷"),
        (r"\\approx\b", "≈"),
        (r"\\(?:d|t|c)frac\b", r"\\frac"),
        (r"(?<=\d)\s*(?=\\frac\b)", " "),
        (r"\\frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}|\\frac\s*(\d)\s*(\d)", r"\1\3/\2\4"),
        (r"(?<=\d)\s?[x×*]\s?10\s?\^\s?(?:\{\s?(-?\d{1,2})\s?\}|(-?\d{1,2})(?!\d))", r"e\1\2"),
    ]
]


@dataclass(frozen=True)
class Quantity:
    """A number found in a text.

    Attributes:
        value: The exact value; None where something numeric stands there that is not one number
            (a time, a ratio, a list, a power, a sum not worked out).
        text: How it is written.
        start: Where it starts in the text it was read from, sign and currency included.
        end: Where it ends there.
    """

    value: Fraction | None
    text: str
    start: int
    end: int


def plain_characters(text: str) -> str:
    """Write digits, signs, spaces and fractions that have a Unicode character of their own in ASCII."""
    text = re.sub(f"[{''.join(_VULGAR)}]", lambda match: f" {_VULGAR[match[0]]}", text)
    return text.translate(_CHARACTERS)


def normalize(text: str) -> str:
    r"""Rewrite LaTeX and Unicode spellings plainly and drop calculator annotations `<<…>>`.

    `\frac{1}{2}` becomes `1/2`, `\$1{,}234` becomes `$1,234`, `−5` becomes `-5`. `\boxed{…}` stays.
    """
    text = plain_characters(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def _exact(digits: str) -> Fraction | None:
    plain = digits.replace(",", "").replace(" ", "")
    if len(plain) > LONGEST_NUMBER:
        return None
    return Fraction(plain)


def _quotient(numerator: Fraction | None, denominator: Fraction | None) -> Fraction | None:
    if numerator is None or not denominator:
        return None
    return numerator / denominator


def _value_of(match: re.Match[str]) -> Fraction | None:
    if match["whole"] is None:
        number = _exact(match["number"])
        return number if match["divisor"] is None else _quotient(number, _exact(match["divisor"]))
    whole, part = _exact(match["whole"]), _quotient(_exact(match["upper"]), _exact(match["lower"]))
    return None if whole is None or part is None else whole + part


def _read(text: str, start: int, digits_at: int, negative: bool) -> Quantity | None:
    """Read the number whose digits start at `digits_at`, and what directly follows it."""
    match = _NUMBER.match(text, digits_at)
    if match is None:
        return None
    value, end = _value_of(match), match.end()
    if odd := _NOT_ONE_NUMBER.match(text, end):
        return Quantity(None, text[start : odd.end()], start, odd.end())
    if scale := _SCALE.match(text, end):
        value, end = value and value * _SCALES[scale[1].lower()], scale.end()
    elif letter := _thousands_letter(text, start, end):
        value, end = (
            value and value * (_MONEY_LETTERS[letter["money"]] if letter["money"] else 10**3),
            letter.end(),
        )
    elif cents := _DOLLARS_AND_CENTS.match(text, end):
        value, end = None if value is None else value + Fraction(int(cents[1]), 100), cents.end()
    if negative and value is not None:
        value = -value
    return Quantity(value, text[start:end], start, end)


def _thousands_letter(text: str, start: int, end: int) -> re.Match[str] | None:
    letter = _THOUSANDS_LETTER.match(text, end)
    return (
        letter
        if letter and (not letter["money"] or re.match(_CURRENCY, text[start:end].lstrip("-+ ")))
        else None
    )


def skip_lead(text: str, position: int = 0) -> int:
    """Return where the text goes on after spaces, brackets, bold marks and words such as "about"."""
    match = _LEAD.match(text, position)
    return match.end() if match else position


def quantity_at(text: str, position: int = 0) -> Quantity | None:
    """Read the number that a text opens with, from `position` on.

    Args:
        text: Normalised text (see `normalize`).
        position: Where to start; `skip_lead` is applied first.

    Returns:
        The number with its sign and currency, or None where the text opens with something else.
    """
    start = skip_lead(text, position)
    sign = _SIGN.match(text, start)
    if sign is None:
        return None
    negative = (sign["sign"] or "+")[0] in "-nNmM" or sign["inner"] is not None
    return _read(text, start, sign.end(), negative)


def all_quantities(text: str) -> list[Quantity]:
    """Return every number of a normalised text in order; digits inside words (`B12`) are none."""
    found: list[Quantity] = []
    position = 0
    while match := _START.search(text, position):
        negative = match["sign"] is not None or match["inner"] is not None
        quantity = _read(text, match.start(), match.end(), negative)
        if quantity is None:  # cannot happen while _START looks ahead for a digit; never loop for ever
            position = match.end() + 1
            continue
        found.append(quantity)
        position = quantity.end
    return found


def number_words_at(text: str, position: int = 0) -> Quantity | None:
    """Read a whole number in English words, such as `eighteen` or `one hundred and five`, that a text opens with.

    Args:
        text: Normalised text.
        position: Where to start; `skip_lead` is applied first.

    Returns:
        The number, or None where the text opens with something else.
    """
    start = skip_lead(text, position)
    match = _NUMBER_WORDS.match(text, start)
    if match is None:
        return None
    written = match["words"].rstrip(" -")
    total = group = 0
    for word in re.findall(r"[a-z]+", written.lower()):
        if word in _WORD_VALUES:
            group += _WORD_VALUES[word]
        elif word == "hundred":
            group = (group or 1) * 100
        elif word in _SCALES:
            total, group = total + (group or 1) * _SCALES[word], 0
    written = re.sub(r" and$", "", written, flags=re.IGNORECASE)
    return Quantity(Fraction(total + group), written, start, start + len(written))
