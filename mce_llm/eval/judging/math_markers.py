r"""The marks that solutions put on an answer that may be any expression, and the LaTeX behind each mark.

The counterpart of `markers` for MATH: the same marks, but what stands behind one is kept as it is written. Which
mark counts is decided in `solutions`, and what two expressions mean in `expressions`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mce_llm.data.boxed import worth_of
from mce_llm.eval.judging.headings import is_heading
from mce_llm.eval.judging.latex import LONGEST_EXPRESSION
from mce_llm.eval.judging.markers import Solution, is_supposed, rest_of_line, tag_content
from mce_llm.eval.judging.quantities import last_quantity, normalize
from mce_llm.eval.judging.reading import number_of, read_expression
from mce_llm.eval.judging.statements import number_first, only_number

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
_ALSO = re.compile(r"\s*,?\s*(?:(?P<or>or)|and)\s*")  # between two formulas that are one answer
_MOST_JOINED = 20  # boxes that are one answer together
_OTHER_SYMBOLS = re.compile("[\u2600-\u27bf\u2b50\ufe0f\U0001f000-\U0001faff]")
_NOT = re.compile(r"\b(?:not|never|neither|isn't|wrong|incorrect)\b", re.IGNORECASE)
_HEADING = re.compile(r"\s*[*_]*(?:\d+[.):]\s*[*_]*\s*[A-Za-z]|(?:Step|Part|Case)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class FoundExpression:
    """An answer behind a marker: its LaTeX, where it ends in the solution, and its rank, as for `markers.Found`."""

    text: str
    end: int
    rank: int = 0


def find_expressions(solution: Solution, kind: str) -> Iterator[FoundExpression]:
    """Give the answers that one kind of marker (a key of `MARKERS`) marks in a solution, in order."""
    yield from _read_all(solution, kind, solution.markers(kind))


def find_last_expressions(solution: Solution, kind: str, limit: int) -> Iterator[FoundExpression]:
    """Give the same from the last on, up to those that end at `limit`."""
    if kind == "boxed":
        yield from (found for found in reversed(list(_read_all(solution, kind, []))) if found.end <= limit)
        return
    matches = [item for item in reversed(solution.markers(kind)) if item[0].start() < limit]
    yield from (found for found in _read_all(solution, kind, matches) if found.end <= limit)


def _read_all(
    solution: Solution, kind: str, matches: list[tuple[re.Match[str], int]]
) -> Iterator[FoundExpression]:
    if kind == "boxed":
        joined: list[str] = []
        for box in solution.boxes:
            if not _says_something(box.content):
                continue
            if solution.joined_box(box.start) is None:
                joined = []
            if worth_of(box.content) not in map(worth_of, joined):
                joined = [*joined[-_MOST_JOINED:], box.content]
            yield FoundExpression(", ".join(joined), box.end)
        return
    starts = [box.start for box in solution.boxes]
    for match, stop in matches:
        before = bisect_right(starts, match.start()) - 1
        if before >= 0 and match.start() < solution.boxes[before].end:
            continue  # words inside a box, such as \\boxed{\\text{The answer is }5}
        if (found := _READERS[kind](solution, match, stop)) is not None and _says_something(found.text):
            yield found


def _says_something(latex: str) -> bool:
    """Whether anything is left of an expression in plain writing: not of a `$` by itself."""
    plain = read_expression(latex).plain
    return bool(plain.text or plain.said)


def last_expression(solution: str) -> FoundExpression | None:
    """Return the last formula or number of a solution without markers: the fall-back."""
    formulas: list[FoundExpression] = []
    end, name = 0, ""
    for match in _MATH.finditer(solution):
        formula = _inside(match)
        if not re.search(r"\d|\\[A-Za-z]", formula):
            continue
        before, end, before_name = end, match.end(), name
        name = formula.partition("=")[0].strip() if "=" in formula else ""
        side = _last_side(formula)
        joined = _ALSO.fullmatch(solution, before, match.start()) if formulas else None
        if joined and (joined["or"] or name == before_name) and len(formulas[-1].text) < LONGEST_EXPRESSION:
            side = f"{formulas[-1].text}, {side}"  # "$x = 3$ or $x = 4$"
        formulas.append(FoundExpression(side, end))
    rest = solution[formulas[-1].end :] if formulas else solution
    if number := last_quantity(normalize(rest)):
        return FoundExpression(number.text, len(solution))
    return formulas[-1] if formulas else None


def _last_side(formula: str) -> str:
    sides = formula.split("=")  # of 12\pi \approx 37.7, the exact side counts, as `expressions` knows
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


def _statement(solution: str, start: int, stop: int) -> FoundExpression | None:
    """Read the answer in the sentence that begins at `start` and ends before `stop`."""
    lead = _LEAD.match(solution, start, start + LONGEST_EXPRESSION)
    begin = lead.end() if lead else start
    if found := _formulas_at(solution, begin):
        return FoundExpression(_boxed_in(found.text) or found.text, found.end)
    limit = end = max(begin, min(stop, begin + LONGEST_EXPRESSION))
    formulas = _MATH.finditer(solution, begin, limit)
    formula = next(formulas, None)
    for sentence_end in _SENTENCE_END.finditer(
        solution, begin, limit
    ):  # a sentence does not end inside a formula
        while formula is not None and formula.end() <= sentence_end.start():
            formula = next(formulas, None)
        if formula is None or sentence_end.start() < formula.start():
            end = sentence_end.start()
            break
    limit = end
    statement = _OTHER_SYMBOLS.sub("", solution[begin:limit])
    if boxed := _boxed_in(statement):
        return FoundExpression(boxed, limit)
    if reason := _REASON.search(statement):
        statement = statement[: reason.start()]
    statement = re.sub(r"[\s,]+(?:and|or)$", "", _unquoted(statement, ' *_"`'))
    if not statement or statement.startswith("\\boxed"):
        return None
    text = _expression_in(statement)
    return FoundExpression(text, limit) if text else None


def _unquoted(statement: str, marks: str) -> str:
    """Take marks off both ends, and quotes; a prime behind a name, as in `x'`, is no quote."""
    inside = statement.strip(marks)
    if inside.startswith("'"):
        inside = inside.removesuffix("'").lstrip("'")
    return inside.strip(marks)


def _boxed_in(statement: str) -> str:
    """Return what the last box of a statement holds, behind what those hold that are joined to it; or an empty text."""
    boxes = list(find_expressions(Solution(statement), "boxed"))
    return boxes[-1].text if boxes else ""


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


def _read_hash(solution: Solution, match: re.Match[str], stop: int) -> FoundExpression | None:
    text = solution.text
    stop = min(stop, match.end() + LONGEST_EXPRESSION)
    line = rest_of_line(text, match.end(), stop)
    if is_heading(line):
        return None
    bare = _is_bare(line)
    if match.end() + len(line) < solution.written_end and (not bare or _HEADING.match(line)):
        return None  # a heading
    found = _statement(text, match.end(), stop)
    return replace(found, rank=0 if bare else 3) if found else None


def _read_answer_is(solution: Solution, match: re.Match[str], stop: int) -> FoundExpression | None:
    return None if is_supposed(solution.text, match) else _statement(solution.text, match.end(), stop)


def _read_answer_tag(solution: Solution, match: re.Match[str], stop: int) -> FoundExpression | None:
    content = tag_content(solution.text, match.end(), min(stop, match.end() + LONGEST_EXPRESSION))
    if content is None:
        return None
    end = match.end() + len(content)
    formula = _MATH.fullmatch(content.strip().rstrip("."))
    if formula:
        return FoundExpression(_inside(formula), end)
    if "\n" in content.strip():
        return None  # a whole solution, with markers of its own
    expression = _expression_in(_unquoted(content, ' *_"`.\n'))
    return FoundExpression(expression, end) if expression else None


def _read_a_colon(solution: Solution, match: re.Match[str], stop: int) -> FoundExpression | None:
    text = solution.text
    if match["letter"] and solution.has_b:
        return None  # one of the things called A, B, ...
    found = _statement(text, match.end(), stop)
    if found is None:
        return None
    written = text[match.end() : found.end].strip(" *_:\n")
    return found if found.end >= solution.end or len(_PROSE_WORD.findall(written)) <= 2 else None


def _read_bold(solution: Solution, match: re.Match[str], stop: int) -> FoundExpression | None:
    text, content = solution.text, match[1].strip()
    formula = _MATH.fullmatch(content.rstrip("."))
    if formula:
        return FoundExpression(_inside(formula), match.end())
    if number_of(content) is None or (
        re.fullmatch(r"\d+[.)]?", content)
        and not text[max(0, match.start() - 200) : match.start()].rpartition("\n")[2].strip(" -*•#")
    ):
        return None  # words, or the number of a step
    return FoundExpression(content, match.end())


_READERS: dict[str, Callable[[Solution, re.Match[str], int], FoundExpression | None]] = {
    "hash": _read_hash,
    "answer_is": _read_answer_is,
    "answer_tag": _read_answer_tag,
    "a_colon": _read_a_colon,
    "bold": _read_bold,
}
