"""The number that a statement gives: the one it opens with, the result of its calculation, or the only one in it.

A statement is what stands behind a mark (see `markers`). Where its number is only a part of what it says, as in "half of
36" or "18 apples, 3 pears", it has no value.
"""

from __future__ import annotations

import itertools
import re

from mce_llm.eval.judging.quantities import Quantity, all_quantities, number_words_at, quantity_at

POWER = r"(?:\s?\^\s?\{?[23]\}?+|[²³])"  # of a unit
# What makes a number the first term of a sum: an operator, perhaps after a unit, and another number.
_OPERATOR_AHEAD = re.compile(
    rf"[%$)]*\s*(?:/?\s?[A-Za-z%°]+(?:/[A-Za-z]+)?(?:\)?\s+|{POWER}\)?\s*)){{0,2}}"
    r"(?:\(\d[^()]*\)\s*=\s*\S|(?:[-+/×÷·•∙⋅*=≈→~]|\*\*|(?:x|times|plus|minus|divided by|multiplied by|over)(?=[\s\d]))"
    r"\s*[-(\\$€£\s]*\.?\d|!?\s*=\s*\S|(?:more|less|fewer) than [-$€£]*\d)"
)
# What joins several answers: "10 or 12", "10 to 12", "3, 5 and 7", "18 apples and 3 pears".
_SEVERAL = re.compile(
    r"(?:\s*[,;]\s*(?:(?:and|or)\s+)?|(?:\s+[A-Za-z]+){1,2}\s*[,;]\s*(?:and\s+)?|\s+(?:[A-Za-z]+\s+){0,2}(?:to|through|or|and)\s+"
    r"|\s*(?:[个個只隻][\u4e00-\u9fff]{1,3}?)?[到至或和と或与與]\s*)(?=[-$]*\.?\d)",
    re.IGNORECASE,
)
_LAST_OF_SEVERAL = re.compile(
    r"[*_\"')%]*(?:\s+(?!cents\b|is\b|are\b|was\b)[A-Za-z]+){0,2}(?:\s*[个個只隻][\u4e00-\u9fff]{1,3})?[\s*_\"')\]}$.]*"
)
# "twice 9", "half of 36", "sqrt(16)": the number is what something is done to.
_DONE_TO = re.compile(
    r"\b(?:twice|double|triple|thrice|half|third of|thirds of|quarters? of|(?:square|cube) root of|factorial of)\s+(?:of\s+)?[-$€£]*\d"
    r"|\b(?:sum|product|difference|quotient|average|mean) (?:of|between) [-$€£]*\d|\b(?:more|less|fewer) than [-$€£]*[\d.]+[^\d]*$"
    r"|\b(?:sqrt|log|ln|sin|cos|tan|gcd|lcm|max|min|abs|floor|ceil|round)\s?\(",
    re.IGNORECASE,
)
NOT_WORKED_OUT = re.compile(
    r"\\(?:sqrt|pi|log|ln|sin|cos|tan|binom|infty|sum|int|pm|frac)(?![A-Za-z])|[√±]|\d!|^\s*(?:<(?!.*>)|>|\\[gl](?:eq?|t)(?![A-Za-z]))"
)
_UNKNOWN = re.compile(
    r"\d\s*[xyz]\b(?!\s*\d)|(?<![A-Za-z])[-+*×·]\s*[a-z]\b|(?<![A-Za-z\d])[a-z]\s*[-+*×·/÷^]\s*\d"
)
# "60 m^2", "9.8 m/s^2": the power of a unit, and not of an unknown; "3 m^2 + 5" goes on as a formula does.
_UNIT_POWER = re.compile(rf"(?<=\d)\s?(?:[A-Za-z]+\s?/\s?)?[ms]{POWER}(?!\s?(?:[-+*×·/÷^=<>\\\d]|[a-z]\b))")
# "x = 5, y = 6": the values of several unknowns.
_SEVERAL_UNKNOWNS = re.compile(
    r"(?<![A-Za-z])(?P<one>[a-z])\s*=[^=]*\d[^=]*(?<![A-Za-z])(?!(?P=one)\b)[a-z]\s*=\s*[-$]*\d"
)
# "eighteen dollars a day", but not "one of them" and not "one more than that".
_AFTER_WORDS = re.compile(
    r"(?:[\s*_\"')%$]+(?!(?:of|more|less|fewer|that|which|we|thing|way|where|to|who|step)\b)[A-Za-z]+){0,4}[\s*_\"')%$.!]*",
    re.IGNORECASE,
)
_OF_SOMETHING = re.compile(r"\s+(?:of\s+)?[A-Za-z' -]{1,80}[\s*_\"')%$.!]*")  # "one-third of the cake"
EQUALS = re.compile(r"[=≈→]|\bwhich (?:is|equals|makes|gives|comes to)\b|\bgiving\b")
_NOT = re.compile(r"\b(?:not|never|neither|isn't|wrong|incorrect)\b", re.IGNORECASE)


def number_first(statement: str) -> Quantity | None:
    """Read a number, or a worked sum such as `9 * $2 = $18`, that a statement opens with."""
    quantity = quantity_at(statement)
    if quantity is None:
        words = number_words_at(statement)
        if words is None or words.value is None or _AFTER_WORDS.fullmatch(statement, words.end):
            return words
        is_part = words.value.denominator > 1 and _OF_SOMETHING.fullmatch(statement, words.end)
        return words if is_part else None
    if quantity.value is None and " of " in quantity.text and (results := _results(statement)):
        return results[-1]  # 25% of 80, which is 20
    if _is_list(statement, quantity):
        return Quantity(None, statement.strip(), 0, len(statement))
    if not _OPERATOR_AHEAD.match(statement, quantity.end):
        return quantity
    results = _results(statement)
    return results[-1] if results else Quantity(None, statement.strip(), 0, len(statement))


def has_unknown(statement: str) -> bool:
    """Whether a statement holds the name of an unknown, as "3x^2" and "5 - m" do; the unit of "60 m^2" is none."""
    return _UNKNOWN.search(_UNIT_POWER.sub("", statement)) is not None


def _is_list(statement: str, first: Quantity) -> bool:
    """Whether a statement that opens with a number goes on with others, and gives nothing but these."""
    values, end = {first.value}, first.end
    while several := _SEVERAL.match(statement, end):
        quantity = quantity_at(statement, several.end())
        if quantity is None:
            return False
        values.add(quantity.value)
        end = quantity.end
    return len(values) > 1 and _LAST_OF_SEVERAL.fullmatch(statement, end) is not None


def _results(statement: str) -> list[Quantity]:
    """Read the sides of the equations in a statement, without those that are sums themselves."""
    if not EQUALS.search(statement):
        return []
    results = []
    bounds = [0, *(match.end() for match in EQUALS.finditer(statement)), len(statement) + 1]
    for start, stop in itertools.pairwise(bounds):
        side = statement[: stop - 1]
        quantity = quantity_at(side, start)
        if quantity and not _OPERATOR_AHEAD.match(side, quantity.end):
            results.append(quantity)
    return results


def only_number(statement: str) -> Quantity | None:
    """Read the number of a statement that opens with words: its last result, or the only number in it."""
    if _NOT.search(statement):
        return None
    if _SEVERAL_UNKNOWNS.search(statement):
        return Quantity(None, statement.strip(), 0, len(statement))
    if EQUALS.search(statement):
        results = _results(statement)
        return results[-1] if results else None
    if NOT_WORKED_OUT.search(statement) or _DONE_TO.search(statement):
        return Quantity(None, statement.strip(), 0, len(statement))
    quantities = all_quantities(statement)
    return quantities[-1] if len({item.value for item in quantities}) == 1 else None
