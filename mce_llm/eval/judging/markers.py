"""The marks that solutions put on their answer, and how the number behind each mark is read.

Each reader takes a solution and a match of its marker, and gives the number, or a `Quantity` without a value
where the mark is followed by something that is not one number, or None where it marks no answer at all (a
heading, prose). Which mark counts is decided in `answers`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

from mce_llm.eval.judging.quantities import (
    Quantity,
    all_quantities,
    number_words_at,
    quantity_at,
    skip_lead,
)

LONGEST_STATEMENT = 400  # characters that are read for one answer

MARKERS = {
    "hash": re.compile(r"(?<!#)#{4,}(?!#)[ \t]*(?:\n[ \t]*)?"),
    "answer_is": re.compile(
        r"(?:\b(?:the|our|my|your|this|final|correct|numeric(?:al)?|so|thus|hence|therefore|and|then)[*_]*\s+"
        r"|(?:^|\n|[^\w\s/])\s*)answer\b(?:\s+(?:to (?:the|this|your|our) [\w ]{1,40}?|in \w+))?[*_\"]*\s*"
        r"(?:\b(?:is|are|was|equals?|comes (?:out )?to|(?:would|will|should|must) be)\b(?P<colon>[*_\s]*:)?|=)",
        re.IGNORECASE,
    ),
    "boxed": re.compile(r"\\(?:f?boxed|fbox)\s*(?:\{|(?=[-$.]*\d))"),
    "a_colon": re.compile(
        r"(?:^|\n|(?<=[.!?]))[ \t]*[*_#>]{0,4}[ \t]*(?P<letter>A)[*_]{0,3}\s?:"
        r"|(?:^|(?<=[\s*_#>\"'(]))(?:Ans|ans|[Aa]nswer|ANSWER)[*_\"]{0,3}\s?:"
        r"|(?:^|\n)[ \t]*(?:#+[ \t]*|[*_]{2})(?:The )?(?:Final )?Answer[*_]*[ \t]*(?=\n)"
    ),
    "bold": re.compile(r"\*\*(?=\S)([^*\n]{1,120}?)\*\*"),
}
_SENTENCE_END = re.compile(r"\n|[!?;]|\.(?=[\s\"'*)$]|$)")
# What makes a number the first term of a sum: an operator, perhaps after a unit, and another number.
_OPERATOR_AHEAD = re.compile(
    r"[%$)]*\s*(?:/?\s?[A-Za-z%°]+\)?\s+){0,2}"
    r"(?:\(\d[^()]*\)\s*=\s*\S|(?:[-+/×÷·*=≈→]|(?:x|times|plus|minus)(?=[\s\d]))\s*[-(\\$€£\s]*\.?\d|=\s*\S)"
)
# What joins several answers: "10 or 12", "10 to 12", "3, 5 and 7", "18 apples and 3 pears".
_SEVERAL = re.compile(
    r"(?:\s*[,;]\s*(?:(?:and|or)\s+)?|\s+(?:[A-Za-z]+\s+){0,2}(?:to|or|and)\s+)(?=[-$]*\.?\d)", re.IGNORECASE
)
_LAST_OF_SEVERAL = re.compile(r"[*_\"')%]*(?:\s+(?!cents\b|is\b|are\b|was\b)[A-Za-z]+){0,2}[\s*_\"')\]}$.]*")
_NOT_WORKED_OUT = re.compile(r"\\(?:sqrt|pi|log|ln|sin|cos|tan|binom|infty|sum|int)\b|√|\d!")
_UNKNOWN = re.compile(r"\d\s*[xyz]\b(?!\s*\d)|[-+*×·]\s*[a-z]\b")
_BETWEEN = re.compile(r"[\s:*_]*(?:between|from)\s+[-$]*\d", re.IGNORECASE)
_CHOICE = re.compile(r"[\s:*_]*(?:(?:option|choice) )?(?:\([A-H]\)|[A-H])[\s.*_]*", re.IGNORECASE)
# "eighteen dollars a day", but not "one of them" and not "one more than that".
_AFTER_WORDS = re.compile(
    r"(?:[\s*_\"')%$]+(?!(?:of|more|less|fewer|that|which|we|thing|way|where|to|who|step)\b)[A-Za-z]+){0,4}[\s*_\"')%$.!]*",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"[=≈→]|\bwhich (?:is|equals|makes|gives|comes to)\b|\bgiving\b")
_SUPPOSED = re.compile(r"\bif\b[^.!?\n]*$", re.IGNORECASE)
UNITS = re.compile(r"[\s*_\"')\]}$]*(?:%|°|¢|/)?[\s*_]*(?:[^\W\d]+[-'/.]?[\s*_)$]*){0,5}[.!]?[\s*_\"')\]}$]*")
_HEADING = re.compile(r"[.):]\s*[*_]*\s*[A-Za-z]")
_NOT = re.compile(r"\b(?:not|never|neither|isn't|wrong|incorrect)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """An answer behind a marker: the number, and where the answer ends in the solution."""

    quantity: Quantity
    end: int


def find_marked(solution: str, kind: str) -> list[Found]:
    """Return the answers that one kind of marker (a key of `MARKERS`) gives in a solution, in order."""
    read = _READERS[kind]
    return [
        found for match in MARKERS[kind].finditer(solution) if (found := read(solution, match)) is not None
    ]


def _statement(text: str, start: int) -> str:
    """Return the text from `start` to the end of its sentence; spaces and marks before it are passed over."""
    begin = skip_lead(text, start)
    end = _SENTENCE_END.search(text, begin)
    return text[start : min(end.start() if end else len(text), begin + LONGEST_STATEMENT)]


def number_first(statement: str) -> Quantity | None:
    """Read a number, or a worked sum such as `9 * $2 = $18`, that a statement opens with."""
    quantity = quantity_at(statement)
    if quantity is None:
        words = number_words_at(statement)
        return words if words and _AFTER_WORDS.fullmatch(statement, words.end) else None
    if _is_list(statement, quantity):
        return Quantity(None, statement.strip(), 0, len(statement))
    if not _OPERATOR_AHEAD.match(statement, quantity.end):
        return quantity
    results = _results(statement)
    return results[-1] if results else Quantity(None, statement.strip(), 0, len(statement))


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
    if not _EQUALS.search(statement):
        return []
    results = []
    bounds = [0, *(match.end() for match in _EQUALS.finditer(statement)), len(statement) + 1]
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
    if _EQUALS.search(statement):
        results = _results(statement)
        return results[-1] if results else None
    if _NOT_WORKED_OUT.search(statement):
        return Quantity(None, statement.strip(), 0, len(statement))
    quantities = all_quantities(statement)
    return quantities[-1] if len({item.value for item in quantities}) == 1 else None


def _found(quantity: Quantity, offset: int) -> Found:
    return Found(quantity, offset + quantity.end)


def is_supposed(solution: str, match: re.Match[str]) -> bool:
    """Whether an answer is that of another case: "if she sold 10 eggs the answer would be 20"."""
    begin = max(0, match.start() - LONGEST_STATEMENT)
    return "would" in match[0] and _SUPPOSED.search(solution, begin, match.start()) is not None


def _read_hash(solution: str, match: re.Match[str]) -> Found | None:
    line = solution[match.end() :].partition("\n")[0][:LONGEST_STATEMENT]
    rest = solution[match.end() + len(line) :]
    last = not rest.strip()
    quantity = number_first(line)
    if quantity is not None:
        numbered = re.match(r"\s*[*_]*(\d+)$", line[: quantity.end])
        headings = len(re.findall(r"#{4,}[ \t]*[*_]*\d+[.):]\s*[*_]*\s*[A-Za-z]", solution[: match.start()]))
        if numbered and _HEADING.match(line, quantity.end) and int(numbered[1][:6]) == headings + 1:
            return None  # "#### 1. Find the price": a numbered heading
        return _found(quantity, match.end())
    if not last or not line.strip(" *_:$."):
        return None  # a heading such as "#### Step 1", or nothing
    quantity = only_number(line) or (None if all_quantities(line) else Quantity(None, line, 0, len(line)))
    return _found(quantity, match.end()) if quantity else None


def _read_answer_is(solution: str, match: re.Match[str]) -> Found | None:
    if is_supposed(solution, match):
        return None
    statement = _statement(solution, match.end())
    quantity = number_first(statement) or only_number(statement)
    if quantity is None:
        if _BETWEEN.match(statement) or _CHOICE.fullmatch(statement):
            return _found(Quantity(None, statement, 0, len(statement)), match.end())
        says = match["colon"] is not None and bool(statement.strip(" *_:$.\n"))
        rest = solution[match.end() :]
        if not says or "boxed" in rest or any(character.isdigit() for character in rest):
            return None  # prose such as "let us see if the answer is right"; the answer is elsewhere
        quantity = Quantity(None, statement, 0, len(statement))
    return _found(quantity, match.end())


def _read_boxed(solution: str, match: re.Match[str]) -> Found | None:
    if not match[0].endswith("{"):
        quantity = quantity_at(solution, match.end())
        return _found(quantity, 0) if quantity else None
    depth, end = 1, match.end()
    while end < min(len(solution), match.end() + LONGEST_STATEMENT) and depth:
        depth += {"{": 1, "}": -1}.get(solution[end], 0)
        end += 1
    if depth:
        return None  # cut off inside the box, or not an answer at all
    content = solution[match.end() : end - 1]
    quantity = number_first(content) or only_number(content)
    last_side = content.rpartition("=")[2]
    if _NOT_WORKED_OUT.search(last_side) or _UNKNOWN.search(last_side):
        quantity = None
    if quantity is None:
        quantity = Quantity(None, content, 0, len(content))
    return _found(quantity, match.end())


def _read_a_colon(solution: str, match: re.Match[str]) -> Found | None:
    if match["letter"] and re.search(r"(?:^|\n)[\s*_>-]*B[*_]*\s?:", solution):
        return None  # one of the things called A, B, ...
    statement = _statement(solution, match.end())
    quantity = number_first(statement)
    alone = not solution[match.end() + len(statement) :].strip(" .*_$\n")
    if quantity is None and _CHOICE.fullmatch(statement) and not match["letter"]:
        quantity = Quantity(None, statement, 0, len(statement))
    elif quantity is None:
        quantity = only_number(statement) if alone else None
    elif not alone and not UNITS.fullmatch(statement[quantity.end :]):
        quantity = None  # "A: 15 trees were there at first. Then ...": the solution, not the answer
    return _found(quantity, match.end()) if quantity else None


def _read_bold(solution: str, match: re.Match[str]) -> Found | None:
    content = match[1]
    quantity = number_first(content)
    if quantity is None:
        named = re.search(r"[:=]|\b(?:is|are)\b", content)
        quantity = only_number(content) if named else None
        if quantity is None or not UNITS.fullmatch(content[quantity.end :]):
            return None
    elif content.rstrip().endswith(":") or not UNITS.fullmatch(content[quantity.end :]):
        return None  # a heading
    line_start = not solution[: match.start()].rpartition("\n")[2].strip(" -*•#")
    marked = content.strip() + solution[match.end() :].partition("\n")[0]
    if line_start and re.match(r"\d+[.)]\s+\S", marked):
        return None  # "**1.** Find the price": a numbered step
    return _found(quantity, match.start(1))


_READERS: dict[str, Callable[[str, re.Match[str]], Found | None]] = {
    "hash": _read_hash,
    "answer_is": _read_answer_is,
    "boxed": _read_boxed,
    "a_colon": _read_a_colon,
    "bold": _read_bold,
}
