r"""Numbers as people and models write them, read into exact fractions.

`normalize` brings LaTeX and Unicode spellings to one plain form, `quantity_at` reads the number that
opens a text, and `all_quantities` finds every number in it. What marks a number as *the answer* is
decided in `answers`; nothing here knows about questions or solutions.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from mce_llm.eval.judging.number_words import DENOMINATORS, NUMBER_WORD, fraction_words, read_words

_LAST_BLOCK = 4000  # characters that the last number is looked for in at a time
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
    r"(?<![\w^])(?<!\^[{-])(?<!\^\{-)(?=\d|(?<!\.)\.\d)"  # no exponent
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALES |= {f"{name}s": value for name, value in _SCALES.items()}
_SCALES |= {"dozen": 12, "dozens": 12, "half-dozen": 6, "half dozen": 6}
_SCALES |= {"lakh": 10**5, "lakhs": 10**5, "crore": 10**7, "crores": 10**7}
# The units of Chinese, Japanese and Korean: 3万 is 30,000.
_SCALES |= dict.fromkeys("百백", 100) | dict.fromkeys("千천", 10**3) | dict.fromkeys("万萬만", 10**4)
_SCALES |= dict.fromkeys(("百万", "百萬", "백만"), 10**6) | dict.fromkeys(("千万", "千萬", "천만"), 10**7)
_SCALES |= dict.fromkeys("亿億억", 10**8)
_SCALE = re.compile(
    rf"\s?-?(?P<name>{'|'.join(sorted(_SCALES, key=len, reverse=True))})(?![A-Za-z])", re.IGNORECASE
)
_REST = re.compile(r"\s(?:and\s)?\d[\d,.]*(?=[\s.$)}\]*]*$)")  # the 500 of "3 thousand 500"
_OF_A_NUMBER = re.compile(r"\$?\s+of\s+[-$€£]*\d")  # "1/2 of 36"
_OF_A_SCALE = re.compile(r"\s(?:of )?an? (?P<name>dozen|hundred|thousand|million|billion)\b", re.IGNORECASE)
_THOUSANDS_LETTER = re.compile(r"k(?![A-Za-z\d])|(?P<money>(?:K|M|bn|B)(?![A-Za-z\d]))")
_MONEY_BEHIND = re.compile(
    rf"\s?(?:{_CURRENCY}|USD\b|EUR\b|GBP\b|dollars?\b|euros?\b|pounds?\b|bucks\b)", re.IGNORECASE
)
_MONEY_LETTERS = {"K": 10**3, "M": 10**6, "bn": 10**9, "B": 10**9}  # else 12M may be a size, and 5K kelvins
_AND_CENTS = re.compile(r"(?P<dollars> +dollars?)?,? +(?:and +)?(?P<cents>\d{1,2}) +cents?\b", re.IGNORECASE)
# "2 and a half", "2 hours and a half", "3 and three quarters"; the part is read by `number_words`.
_AND_A_PART = re.compile(
    r"(?: (?!(?:dozen|hundred|thousand|million|billion|trillion|lakh|crore)s?\b)(?P<unit>[A-Za-z]+))? and (?=(?:(?:an?|one|two|three|four|five|six|seven|eight|nine)[ -])?"
    r"(?:half|(?:quarter|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?)\b)",
    re.IGNORECASE,
)
_MORE_DIGITS = re.compile(r"(?:\d|,(?=\d))*(?:\.\d+)?")
_MEASURES = (
    r"years?|yrs?|months?|weeks?|wks?|days?|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s",
    r"miles?|mi|yards?|yds?|feet|foot|ft|inch(?:es)?|in|kilomet(?:er|re)s?|km|met(?:er|re)s?|m|centimet(?:er|re)s?|cm|mm",
    r"tons?|tonnes?|stones?|pounds?|lbs?|ounces?|oz|kilograms?|kilos?|kgs?|grams?|g",
    r"gallons?|gal|quarts?|qts?|pints?|pts?|cups?|lit(?:er|re)s?|l|millilit(?:er|re)s?|ml|tablespoons?|tbsp|teaspoons?|tsp",
    r"dollars?|quarters?|dimes?|nickels?|penn(?:y|ies)|cents?|pounds?|pence|euros?|rupees?|paise",
)
# Two measures of one kind, such as "2 hours, 30 minutes" or "5 ft 6": each number is a part.
_COMPOUND = "|".join(
    rf"\s*(?:{units})(?![A-Za-z])\.?\s*,?\s*(?:(?:and|&|plus|with)\s+)?(?:\d+(?:\.\d+)?(?:\s*(?:{units})\b|(?=[\s.)}}\]*]*$))"
    rf"|(?:{NUMBER_WORD})(?:-(?:{NUMBER_WORD}))?\s+(?:{units})\b|(?<=and )an? (?:{units})\b)"
    for units in _MEASURES
)
# What follows a number in words and makes it part of more: "half of 36", "two hours and thirty minutes".
_PART_OF = re.compile(
    rf"\s+(?:(?:of|and|or|in|to|out of|times|plus|minus|over|divided by)\s+)?(?:the\s+)?(?:[-$€£¥]*\d|(?:{NUMBER_WORD})\b)"
    rf"|{_COMPOUND}",
    re.IGNORECASE,
)
# "2 thirds", "3 quarters of an hour"; quarters by themselves are coins.
_OF_ONE = re.compile(
    r"[ -](?P<name>thirds|fourths|fifths|sixths|sevenths|eighths|ninths|tenths|hundredths|quarters(?= of (?:an?|the)\b))\b",
    re.IGNORECASE,
)
# What follows a number and makes it part of something that is not one number.
_NOT_ONE_NUMBER = re.compile(
    r":\d+|\s:\s?\d+(?=[\s.)}\]$*]*$)"  # a time or a ratio
    r"|!(?=\$)"  # a factorial in a formula
    r"|\s?(?:%|percent)\s+of\s+[-$€£]*\d"  # a part of something that is not worked out
    r"|(?:,\d+)+"  # 1,2 or 12,50: a list, or a decimal comma; either reading could be wrong
    r"|(?<!\d{4})(?: \d{3})+,\d{1,2}(?!\d)"  # 1 234,50
    # 10 12: digits side by side, with nothing behind them that they could belong to, as in "2 12-inch pizzas".
    r"|(?: [$€£]*\d+(?:[.,]\d+)*+(?: ?/ ?\d+)?+)+(?=[ *_$)}\]\"'%€£]*[.,;!?]*\s*(?:\n|$)| [$€£]*\d)"
    r"|\s?(?:\\(?:leq?(?:slant)?|geq?(?:slant)?|lt|gt|neq?|equiv|sim)(?![A-Za-z])|[≤≥≠∼])"  # 10 ≤ x
    r"|\s?(?:<=?\s?[a-z]\s?<=?|>=?\s?[a-z]\s?>=?)\s?[-$]*\.?\d"  # 10 < x < 12, and no tag
    r"|(?:\.\d+)+"  # 1.000.000 or 3.4.2021
    r"| ?/ ?\d+(?:/\d+)*"  # a date
    r"|\.?\s?\\overline|\.\(\d+\)"  # a repeating decimal
    r"|\s?\^[^\s°]+|[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+|\s+(?:squared|cubed|factorial)\b(?!\s+[a-z])"  # a power
    r"|_\{?\d+\}?"  # the base of its digits
    r"|\(\d+(?:\.\d+)?\)"  # a product: 9(2)
    r"|'\s?\d+"  # feet and inches
    r"|\s?\\(?:pi|sqrt|ln|log|sin|cos|tan|frac|binom|infty|pm)\b|\s?[π√±]"
    rf"|{_COMPOUND}"
    r"|\d*\s?(?:thousand|million|billion|trillion),?\s(?:and\s)?\d[\d,]*\s?(?:hundred|thousand|million|billion)\b"
    r"|\s?[百千万萬亿億백천만억]+\s?\d",
    re.IGNORECASE,
)

_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5"}
_VULGAR |= {"⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}


_OTHER_DIGIT = re.compile(r"(?![0-9])\d")  # of other scripts
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2008\t", " "),
        # Joiners and marks of direction, which nobody sees.
        **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u061c\u2060\ufeff", ""),
        **{chr(code): "" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
        # What Arabic, Chinese and Japanese put between and around their digits.
        **dict(zip("：；！？＝％＄＋＊／（）［］．￥", ":;!?=%$+*/()[].¥", strict=True)),
        **dict.fromkeys("，、،", ", "),
        **dict.fromkeys("。｡۔।", ". "),
        "٬": ",",
        "٫": ".",
        "٪": "%",
        "\u2044": "/",
        "\u2019": "'",
        "\r": "\n",
    }
)
# Letters of scripts that set no spaces (Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese): no part of a number.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
# Applied in this order; each takes text that the ones before it have already simplified.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"<<[^<>\n]*>>|<<[^<>\n]*$", ""),  # calculator annotations, the last perhaps cut off
        (r"\\\\", " "),
        (r"\\!", ""),
        (r"(?:\\text)?\{([,.:])\}", r"\1"),
        (r"(?<=\d)'(?=\d{3}(?!\d))", ""),
        (rf"(?<=[{_UNSPACED}])(?=[-+$€£¥₹]{{0,2}}\.?\d)|(?<=\d)(?=[{_UNSPACED}])", " "),
        (r"(?<=\d)\*\*(?=-?\d)", "^"),
        (r"(?<=\d)(?:\\[,;: ]|[\u2009\u202f])(?=\d{3}(?!\d))", ""),
        (r"\\[,;:> ]|\\q?quad\b|[\u2009\u202f]|\\(?:left|right|displaystyle)\b", " "),
        (r"\\([$%#&])", r"\1"),
        (r"\\[()\[\]]", " "),
        (r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathit|mbox|bf)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\\degree\b", "°"),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])", "×"),
        (r"\\div(?![A-Za-z])", "÷"),
        (r"\\approx(?![A-Za-z])", "≈"),
        (r"\\(?:d|t|c)frac(?![A-Za-z])", r"\\frac"),
        (r"(?<=\d)\s*(?=\\frac(?![A-Za-z]))", " "),
        (r"\\frac\s*(?:\{\s*\$?(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))", r"\1\2/\3\4"),
        (r" {2,}", " "),
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
    text = _OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
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
    if cents := _cents(text, start, end):
        value, end = None if value is None else value + Fraction(int(cents["cents"]), 100), cents.end()
    elif odd := _NOT_ONE_NUMBER.match(text, end):
        return _no_value(text, start, odd.end())
    else:
        value, end = _with_part(text, value, end)
        if letter := _THOUSANDS_LETTER.match(text, end):
            money = re.match(_CURRENCY, text[start:end].lstrip("-+ ")) or _MONEY_BEHIND.match(
                text, letter.end()
            )
            if letter["money"] and not money:
                return _no_value(text, start, letter.end())
            value = value and value * (_MONEY_LETTERS[letter["money"]] if letter["money"] else 10**3)
            end = letter.end()
        if match["divisor"] and (scale := _OF_A_SCALE.match(text, end)):
            value, end = value and value * _SCALES[scale["name"].lower()], scale.end()
        while scale := _SCALE.match(text, end):
            factor = _SCALES[scale["name"].lower()]
            more, end = _with_part(text, value, scale.end())  # 3 dozen and a half
            value = more and more * factor
            if rest := _REST.match(text, end):
                return _no_value(text, start, rest.end())
        if match["divisor"] and (whole := _OF_A_NUMBER.match(text, end)):
            return _no_value(text, start, whole.end())
    if negative and value is not None:
        value = -value
    return Quantity(value, text[start:end], start, end)


def _no_value(text: str, start: int, end: int) -> Quantity:
    """Something that is not one number, with all digits of the number that it ends in: none of them is read by itself."""
    if text[end - 1].isdigit() and (digits := _MORE_DIGITS.match(text, end)):
        end = digits.end()
    return Quantity(None, text[start:end], start, end)


def _cents(text: str, start: int, end: int) -> re.Match[str] | None:
    """The cents behind dollars: `18 dollars and 50 cents`, `$18 and 50 cents`."""
    cents = _AND_CENTS.match(text, end)
    return cents if cents and (cents["dollars"] or "$" in text[start:end]) else None


def _with_part(text: str, value: Fraction | None, end: int) -> tuple[Fraction | None, int]:
    """Take in the part that a number goes on with: 2 and a half, 2 hours and three quarters, 2 thirds."""
    if (parts := _OF_ONE.match(text, end)) and value is not None and value.denominator == 1:
        return value / DENOMINATORS[parts["name"].lower()], parts.end()
    joined = _AND_A_PART.match(text, end)
    part = fraction_words(text, joined.end()) if joined else None
    if part is None:
        return value, end
    return None if value is None else value + part.value, part.end


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


def last_quantity(text: str) -> Quantity | None:
    """Return the last number of a normalised text, reading no more of it than that takes."""
    end, size = len(text), _LAST_BLOCK
    while end > 0:
        start = 0 if end <= size else max(text.rfind("\n", 0, end - size), text.rfind(" ", 0, end - size), 0)
        found = all_quantities(text[start:end])
        if found and start and found[-1].start < 2 * LONGEST_NUMBER:
            size *= 4  # its beginning may lie before
        elif found:
            last = found[-1]
            return Quantity(last.value, last.text, start + last.start, start + last.end)
        else:
            end, size = start, _LAST_BLOCK
    return None


def number_words_at(text: str, position: int = 0) -> Quantity | None:
    """Read a number in English words, such as `eighteen`, `two and a half` or `a dozen`, that a text opens with.

    Args:
        text: Normalised text.
        position: Where to start; `skip_lead` is applied first.

    Returns:
        The number, or None where the text opens with something else. Its value is None where it is only a part of what
        the text says: `half of 36`, `two hours and thirty minutes`.
    """
    start = skip_lead(text, position)
    number = read_words(text, start)
    if number is None:
        return None
    written = text[start : number.end]
    if part := _PART_OF.match(text, number.end):
        return Quantity(None, text[start : part.end()], start, part.end())
    return Quantity(number.value, written, start, number.end)
