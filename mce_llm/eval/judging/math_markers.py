r"""The marks that solutions put on an answer that may be any expression, and the LaTeX behind each mark.

The counterpart of `markers` for MATH: the same marks, but what stands behind one is kept as it is written. Which
mark counts is decided in `answers`, and what two expressions mean in `expressions`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mce_llm.data.boxed import boxed_contents
from mce_llm.eval.judging.latex import LONGEST_EXPRESSION
from mce_llm.eval.judging.markers import MARKERS, is_supposed, number_first, only_number
from mce_llm.eval.judging.quantities import all_quantities, normalize
from mce_llm.eval.judging.reading import number_of

# $$…$$, \[…\], \(…\) and $…$; a dollar sign before an amount opens nothing.
_MATH = re.compile(
    r"\$\$(?P<display>.{1,1000}?)\$\$|\\\[(?P<bracket>.{1,1000}?)\\\]|\\\((?P<parenthesis>.{1,1000}?)\\\)"
    r"|(?<!\\)\$(?!\s*[\d,.]+\s+[A-Za-z])(?P<dollar>(?:\\\$|[^$\n])+?)(?<!\\)\$(?!\d)",
    re.DOTALL,
)
_LEAD = re.compile(
    r"(?:[\s:*_\"'`~]|(?:approximately|exactly|equal to|simply|just|also|now|then|thus)\b)*", re.IGNORECASE
)
_JOIN = re.compile(r"\s*(?:,|;)?\s*(?:and|or)?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[!?;](?=\s|$)|\.(?=[\s\"'*)]|$)")
_REASON = re.compile(r",?\s+(?:because|since|which|so|as|where|when|if|for|but|not|after)\b", re.IGNORECASE)
_PROSE_WORD = re.compile(
    r"(?<![\\A-Za-z{])(?!(?:and|or|sin|cos|tan|sec|csc|cot|log|sqrt)\b)[A-Za-z]{3,}(?![A-Za-z]*\})"
)
# What is more than numbers and words: a command, a power, an index, a letter by itself.
_ALGEBRA = re.compile(r"\\(?!text|[$%!,; ])|[\^_{]|(?<![A-Za-z'])(?![aAI]\b)[A-Za-z](?![A-Za-z'.)])")
_OTHER_SYMBOLS = re.compile("[\u2600-\u27bf\u2b50\ufe0f\U0001f000-\U0001faff]")
_NOT = re.compile(r"\b(?:not|never|neither|isn't|wrong|incorrect)\b", re.IGNORECASE)
_HEADING = re.compile(r"\s*[*_]*(?:\d+[.):]\s*[*_]*\s*[A-Za-z]|(?:Step|Part|Case)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class FoundExpression:
    """An answer behind a marker: its LaTeX, and where it ends in the solution."""

    text: str
    end: int


def find_expressions(solution: str, kind: str) -> list[FoundExpression]:
    """Return the answers that one kind of marker (a key of `MARKERS`) gives in a solution, in order."""
    if kind == "boxed":
        return [FoundExpression(content, end) for content, end in boxed_contents(solution)]
    read = _READERS[kind]
    return [
        found for match in MARKERS[kind].finditer(solution) if (found := read(solution, match)) is not None
    ]


def last_expression(solution: str) -> FoundExpression | None:
    """Return the last formula or number of a solution without markers: the fall-back."""
    formulas = [
        FoundExpression(_last_side(formula), match.end())
        for match in _MATH.finditer(solution)
        if re.search(r"\d|\\[A-Za-z]", formula := _inside(match))
    ]
    rest = solution[formulas[-1].end :] if formulas else solution
    numbers = all_quantities(normalize(rest))
    if numbers:
        return FoundExpression(numbers[-1].text, len(solution))
    return formulas[-1] if formulas else None


def _last_side(formula: str) -> str:
    sides = re.split(r"=|\\approx\b", formula)
    return sides[-1].strip() if len(sides) > 1 and sides[-1].strip() else formula.strip()


def _inside(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def _formulas_at(text: str, position: int) -> FoundExpression | None:
    """Read the formula that opens a text, and those joined to it by commas, `and` and `or`."""
    contents, end = [], position
    while match := _MATH.match(text, position):
        contents.append(_inside(match).rstrip(".,"))
        end = match.end()
        join = _JOIN.match(text, end)
        position = join.end() if join and join[0].strip() else len(text)
    return FoundExpression(", ".join(contents), end) if contents else None


def _statement(solution: str, start: int) -> FoundExpression | None:
    """Read the answer in the sentence that begins at `start`."""
    lead = _LEAD.match(solution, start)
    begin = lead.end() if lead else start
    if found := _formulas_at(solution, begin):
        boxed = list(boxed_contents(found.text))
        return FoundExpression(boxed[-1][0], found.end) if boxed else found
    end = begin
    while stop := _SENTENCE_END.search(solution, end):  # a sentence does not end inside a formula
        inside = next(
            (item for item in _MATH.finditer(solution, begin) if item.start() < stop.start() < item.end()),
            None,
        )
        if inside is None:
            break
        end = inside.end()
    limit = min(stop.start() if stop else len(solution), begin + LONGEST_EXPRESSION)
    statement = _OTHER_SYMBOLS.sub("", solution[begin:limit])
    if boxed := list(boxed_contents(statement)):
        return FoundExpression(boxed[-1][0], limit)
    if reason := _REASON.search(statement):
        statement = statement[: reason.start()]
    statement = re.sub(r"[\s,]+(?:and|or)$", "", statement.strip(" *_\"'`"))
    if not statement or statement.startswith("\\boxed"):
        return None
    text = _expression_in(statement)
    return FoundExpression(text, limit) if text else None


def _expression_in(statement: str) -> str | None:
    """Return the expression that a sentence states: all of it, its beginning, or the only one in it."""
    words = list(_PROSE_WORD.finditer(statement))
    if not words:
        return statement.rstrip('}" ') if statement.count("}") > statement.count("{") else statement
    opening = re.sub(r"[\s,]+(?:and|or)$", "", statement[: words[0].start()].strip())
    if not _ALGEBRA.search(statement) and (number := _number_in(statement)):
        return number
    if re.search(r"\d|\\[A-Za-z]{2}", opening) and not re.search(r"[-+=*/^({]$", opening):
        return opening  # 2π inches long
    if _NOT.search(statement):
        return None
    formulas = [_inside(match) for match in _MATH.finditer(statement)]
    if formulas:
        return formulas[-1] if len(set(formulas)) == 1 or "=" in formulas[-1] else None
    return statement if len(words) <= 3 else None


def _number_in(statement: str) -> str | None:
    """Return the number that a sentence without algebra states, as written where that can be read on its own."""
    plain = normalize(statement)
    quantity = number_first(plain) or only_number(plain)
    if quantity is None or quantity.value is None:
        return None
    return quantity.text if number_of(quantity.text) == quantity.value else str(quantity.value)


def _is_bare(text: str) -> bool:
    return bool(text.strip()) and not _PROSE_WORD.search(text)


def _read_hash(solution: str, match: re.Match[str]) -> FoundExpression | None:
    line = solution[match.end() :].partition("\n")[0]
    last = not solution[match.end() + len(line) :].strip()
    if not last and (not _is_bare(line) or _HEADING.match(line)):
        return None  # a heading
    return _statement(solution, match.end())


def _read_answer_is(solution: str, match: re.Match[str]) -> FoundExpression | None:
    return None if is_supposed(solution, match) else _statement(solution, match.end())


def _read_a_colon(solution: str, match: re.Match[str]) -> FoundExpression | None:
    if match["letter"] and re.search(r"(?:^|\n)[\s*_>-]*B[*_]*\s?:", solution):
        return None  # one of the things called A, B, ...
    found = _statement(solution, match.end())
    if found is None:
        return None
    written = solution[match.end() : found.end].strip(" *_:\n")
    alone = not solution[found.end :].strip(" .*_$\n")
    return found if alone or len(_PROSE_WORD.findall(written)) <= 2 else None


def _read_bold(solution: str, match: re.Match[str]) -> FoundExpression | None:
    content = match[1].strip()
    formula = _MATH.fullmatch(content.rstrip("."))
    if formula:
        return FoundExpression(_inside(formula), match.end())
    line_start = not solution[: match.start()].rpartition("\n")[2].strip(" -*•#")
    if number_of(content) is None or (line_start and re.fullmatch(r"\d+[.)]?", content)):
        return None  # words, or the number of a step
    return FoundExpression(content, match.end())


_READERS: dict[str, Callable[[str, re.Match[str]], FoundExpression | None]] = {
    "hash": _read_hash,
    "answer_is": _read_answer_is,
    "a_colon": _read_a_colon,
    "bold": _read_bold,
}
