"""The marks that solutions put on their answer, and how the number behind each mark is read.

Each reader takes a solution and a match of its marker, and gives the number, or a `Quantity` without a value
where the mark is followed by something that is not one number, or None where it marks no answer at all (a
heading, prose). Which mark counts is decided in `solutions`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from mce_llm.data.boxed import Box, are_joined, boxes, closing_brace
from mce_llm.eval.judging.headings import GOES_ON, NUMBERED_HEADING, without_heading
from mce_llm.eval.judging.quantities import Quantity, quantity_at, skip_lead
from mce_llm.eval.judging.statements import (
    EQUALS,
    NOT_WORKED_OUT,
    POWER,
    has_unknown,
    number_first,
    only_number,
)

LONGEST_STATEMENT = 400  # characters that are read for one answer

# "The answer is" in other languages, those of MGSM first.
_ELSEWHERE = (
    r"\b(?:correct|right|best) (?:option|choice)\b[*_]*\s+(?:is|would be)\b:?|故选\s?:?|"
    r"(?:答案|正解|答え|解答|答)\s?(?:应该|應該|应|應)?\s?(?:就?是|为|為|は|等于|:|=)\s?:?|(?:정답|답)\s?(?:은|:)|คำตอบ\s?(?:คือ|:)"
    r"|\b[Ll]a [Rr]espuesta (?:(?:final|correcta) )?es\b:?|\b[Rr]espuesta(?: final)?\s?:|\b[Aa] [Rr]esposta (?:final )?é\b:?"
    r"|\b[Rr]esposta\s?:|\b[Ll]a [Rr]éponse (?:finale )?est\b\s?:?|\b[Rr]éponse(?: finale)?\s?:|\b[Ll]a [Rr]isposta (?:finale )?è\b:?"
    r"|\b[Dd]ie (?:endgültige |richtige )?Antwort (?:ist|lautet|beträgt)\b:?|\b(?:Endgültige )?Antwort\s?:|\b[Hh]et antwoord is\b:?"
    r"|\b[Оо]твет(?: равен\b|\s?[:=-])|উত্তর\s?(?:হল|হলো|:)|సమాధానం\s?:?|\b[Jj]ibu\s?(?:ni\b|:)|(?:उत्तर|जवाब)\s?(?:है|:)"
    r"|(?:الجواب|الإجابة|الاجابة)(?: النهائية)?\s?(?:هو|هي|:)|đáp án (?:là\b|:)|\b[Jj]awaban(?:nya adalah\b|\s?:)|\b[Cc]evap\s?:"
)
# Languages that write 1.500,50 for 1,500.50; a comma before three digits may be either and is left.
_WRITES_COMMAS = re.compile(
    r"respuesta|resposta|réponse|risposta|antwort|antwoord|ответ|đáp|jawaban|cevap", re.IGNORECASE
)
_WITH_COMMA = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:\.\d{3})+(?:,\d+)?|\d+,\d{1,2})(?![.,]?\d)")
_SWAPPED = str.maketrans(".,", ",.")
MARKERS = {
    "hash": re.compile(r"(?<!#)#{4,}(?!#)[ \t]*(?:\n[ \t]*)?"),
    "answer_is": re.compile(
        rf"(?:{_ELSEWHERE})|"
        r"(?:\b(?:the|our|my|your|this|final|correct|numeric(?:al)?|so|thus|hence|therefore|and|then)[*_]*\s+"
        r"|(?:^|\n|[^\w\s/])\s*)answer\b(?:\s+(?:to (?:the|this|your|our) [\w ]{1,40}?|in \w+))?[*_\"]*\s*"
        r"(?:\b(?:is|are|was|equals?|comes (?:out )?to|(?:would|will|should|must) be)\b(?P<colon>[*_\s]*:)?|=)",
        re.IGNORECASE,
    ),
    "answer_tag": re.compile(r"<(?P<tag>(?:final[_ -]?)?answer|final|ans)\s{0,9}>", re.IGNORECASE),
    "boxed": re.compile(r"\\(?:f?boxed|fbox)\s*(?:\{|(?=[-$.]*\d))"),
    "a_colon": re.compile(
        r"(?:^|\n|(?<=[.!?]))[ \t]*(?:[*_#>]{1,4}[ \t]*)?(?P<letter>A)[*_]{0,3}\s?:"
        r"|(?:^|(?<=[\s*_#>\"'(]))(?:Ans|ans|[Aa]nswer|ANSWER)[*_\"]{0,3}\s?:"
        r"|(?:^|\n)[ \t]*(?:#+[ \t]*|[*_]{2})(?:The )?(?:Final )?Answer[*_]*[ \t]*(?=\n)"
        # An answer on the first line, with what explains it behind.
        r"|\A\s*(?=\S[^\n]{0,60}\n\s*[*_#]*\s*(?:Explanation|Reasoning|Justification|Working|Here(?:'s| is) (?:how|why|the))\b)"
    ),
    "bold": re.compile(r"\*\*(?=\S)([^*\n]{1,120}?)\*\*"),
}
_SENTENCE_END = re.compile(
    r"\n|[?;]|!(?!\s*[=*/+×÷-]|\$)|(?<!\bhrs)(?<!\bhr)(?<!\bft)(?<!\blbs)(?<!\blb)\.(?=[\s\"'*)$]|$)"
    r"|(?<=[a-z])\.(?=[\s\"'*)$]*(?:$|[A-Z\n]))"
)
_BETWEEN = re.compile(r"[\s:*_]*(?:between|from)\s+[-$]*\d", re.IGNORECASE)
_CHOICE = re.compile(r"[\s:*_]*(?:(?:option|choice) )?(?:\([A-H]\)|[A-H])[\s.*_]*", re.IGNORECASE)
# A calculation that the next sentence or line goes on with: "A: 5 + 3 = 8 apples. 8 * 2 = 16".
_GOES_ON_WITH_SUMS = re.compile(
    r"(?:\.[ \t]*\n?|\n)(?!\n)[^\n]{0,160}?\d[^\n=]{0,80}[-+*/×÷x][^\n=]{0,80}=", re.IGNORECASE
)
_FIRST_OF_LIST = re.compile(r"[\s*_]*1[.)]\s+\S.{0,600}?(?<=\s)2[.)]\s+\S", re.DOTALL)
# A correction in the same breath: "20, no wait, 18", "20 (sorry, 18)".
_CORRECTED = re.compile(
    r"[*_]*\s*(?:[,(\u2014\u2026-]|\.\.\.)\s*(?:no,? wait|wait,? no|actually|sorry|scratch that|i mean|oops|correction)\b"
    r"[\s,:]*(?:it(?:'s| is)\s+|make (?:that|it)\s+)?(?=[*_]*[-$€£]*\d)",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(r"\bif\b[^.!?\n]*$", re.IGNORECASE)
UNITS = re.compile(
    rf"[\s*_\"')\]}}$]*(?:%|°|¢|/)?[\s*_]*(?:[^\W\d]+{POWER}?[-'/.]?[\s*_)$]*){{0,5}}[.!]?[\s*_\"')\]}}$]*"
)
# What is said in place of an answer; other words behind "####" are a heading.
_NO_ANSWER = re.compile(
    r"\b(?:unknown|none|nothing|no (?:answer|solution)|n/?a|undefined|cannot|can't|not (?:enough|possible|given|determined)"
    r"|impossible|indeterminate|insufficient|unclear|unsolvable|i don't know)\b|^[\s*_]*\?+",
    re.IGNORECASE,
)
_ASKS_BACK = re.compile(r"吗|嗎|ですか|でしょうか|입니까|인가요")  # "is the answer 20?"
_WORDS = re.compile(r"[^\W\d_]{2,}")


class Solution:
    """A solution that markers are looked for in, with what they ask of all of it, worked out once."""

    def __init__(self, text: str):
        self.text = text
        self._markers: dict[str, list[tuple[re.Match[str], int]]] = {}

    def markers(self, kind: str) -> list[tuple[re.Match[str], int]]:
        """The markers of a kind in order, each with the place up to which its answer may reach: the next marker."""
        if kind not in self._markers:
            matches = list(MARKERS[kind].finditer(self.text))
            stops = [*(match.start() for match in matches[1:]), len(self.text)]
            pairs = zip(matches, stops, strict=True) if matches else ()
            # A marker right before another has nothing to say; bold marks hold their answer themselves.
            self._markers[kind] = [pair for pair in pairs if kind == "bold" or pair[0].end() < pair[1]]
        return self._markers[kind]

    @cached_property
    def end(self) -> int:
        """Where the text ends, but for spaces, full stops and bold marks."""
        return len(self.text.rstrip(" .*_$\t\n"))

    @cached_property
    def written_end(self) -> int:
        """Where the text ends, but for spaces."""
        return len(self.text.rstrip())

    @cached_property
    def boxes(self) -> list[Box]:
        """The boxes in the text."""
        return list(boxes(self.text))

    def joined_box(self, start: int) -> Box | None:
        r"""The box that the one at `start` is joined to as another answer: `\boxed{3}` and `\boxed{-2}`."""
        last = bisect_left(self._box_starts, start) - 1
        if last < 0 or self.boxes[last].end > start:
            return None
        return self.boxes[last] if are_joined(self.text, self.boxes[last], start) else None

    @cached_property
    def _box_starts(self) -> list[int]:
        return [box.start for box in self.boxes]

    @cached_property
    def has_b(self) -> bool:
        """Whether things are called A, B, …, so that `A:` marks no answer."""
        return re.search(r"(?:^|\n)[\s*_>-]*B[*_]*\s?:", self.text) is not None

    @cached_property
    def last_number(self) -> int:
        """Where the last digit or box stands."""
        return max(map(self.text.rfind, ("boxed", *"0123456789")))

    @cached_property
    def numbered_headings(self) -> list[int]:
        """Where numbered headings stand."""
        return [match.start() for match in NUMBERED_HEADING.finditer(self.text)]


@dataclass(frozen=True)
class Found:
    """An answer behind a marker.

    Attributes:
        quantity: The number.
        end: Where the answer ends in the solution.
        rank: 0 for a marker with nothing but the answer; 1 with one word more, which counts unless another answer follows;
            2 with several, as a heading has them, which a box before it outranks too; 3 where it begins with words and is
            rather a heading, which counts only where nothing stronger is marked.
    """

    quantity: Quantity
    end: int
    rank: int = 0


def find_marked(solution: Solution, kind: str) -> Iterator[Found]:
    """Give the answers that one kind of marker (a key of `MARKERS`) marks in a solution, in order."""
    read = _READERS[kind]
    for match, stop in solution.markers(kind):
        if (found := read(solution, match, stop)) is not None:
            yield found


def find_last_marked(solution: Solution, kind: str, limit: int) -> Iterator[Found]:
    """Give the same from the last on, up to those that end at `limit`."""
    read = _READERS[kind]
    for match, stop in reversed(solution.markers(kind)):
        if match.start() < limit and (found := read(solution, match, stop)) and found.end <= limit:
            yield found


def _statement(text: str, start: int, stop: int) -> str:
    """Return the text from `start` to the end of its sentence, or to `stop`; spaces and marks before it are passed over."""
    begin = skip_lead(text, start)
    stop = max(start, min(stop, begin + LONGEST_STATEMENT))
    end = _SENTENCE_END.search(text, begin, min(len(text), stop + 1))
    return text[start : min(end.start() if end else stop, stop)]


def _found(quantity: Quantity, offset: int) -> Found:
    return Found(quantity, offset + quantity.end)


def is_supposed(solution: str, match: re.Match[str]) -> bool:
    """Whether an answer is that of another case: "if she sold 10 eggs the answer would be 20"."""
    begin = max(0, match.start() - LONGEST_STATEMENT)
    return "would" in match[0] and _SUPPOSED.search(solution, begin, match.start()) is not None


def rest_of_line(text: str, start: int, stop: int) -> str:
    """Return a text from `start` to the end of its line, or to `stop`."""
    end = text.find("\n", start, stop)
    return text[start : end if end >= 0 else stop]


def tag_content(text: str, start: int, stop: int) -> str | None:
    """Return what stands behind `<answer>`, up to its closing tag or `stop`; None where that is nothing, or holds a box."""
    closing = text.find("</", start, stop)
    content = text[start : closing if closing >= 0 else stop]
    return None if not content.strip() or MARKERS["boxed"].search(content) else content


def _read_hash(solution: Solution, match: re.Match[str], stop: int) -> Found | None:
    text = solution.text
    line = rest_of_line(text, match.end(), min(stop, match.end() + LONGEST_STATEMENT))
    quantity = number_first(line)
    if quantity is not None:
        rank = min(2, len(_WORDS.findall(line, quantity.end)))
        if (numbered := re.match(r"\s*[*_]*(\d+)$", line[: quantity.end])) and GOES_ON.match(
            line, quantity.end
        ):
            if int(numbered[1][:6]) == bisect_left(solution.numbered_headings, match.start()) + 1:
                return None  # "#### 1. Find the price": a numbered heading
            rank = 3
        return Found(quantity, match.end() + quantity.end, rank)
    if match.end() + len(line) < solution.written_end or not line.strip(" *_:$."):
        return None  # a heading such as "#### Step 1", or nothing
    rest = without_heading(line)
    quantity = number_first(rest) or only_number(rest)
    if quantity is None and _NO_ANSWER.search(line):
        quantity = Quantity(None, line, 0, len(line))
    return Found(quantity, solution.written_end, rank=3) if quantity else None


def _read_answer_is(solution: Solution, match: re.Match[str], stop: int) -> Found | None:
    text = solution.text
    if is_supposed(text, match):
        return None
    statement = _statement(text, match.end(), stop)
    if _ASKS_BACK.search(statement):
        return None
    if _WRITES_COMMAS.search(match[0]):
        statement = _WITH_COMMA.sub(lambda number: number[0].translate(_SWAPPED), statement)
    quantity = number_first(statement) or only_number(statement)
    if quantity is None:
        if _BETWEEN.match(statement) or _CHOICE.fullmatch(statement):
            return _found(Quantity(None, statement, 0, len(statement)), match.end())
        says = match["colon"] is not None and bool(statement.strip(" *_:$.\n"))
        if not says or solution.last_number >= match.end():
            return None  # prose such as "let us see if the answer is right"; the answer is elsewhere
        quantity = Quantity(None, statement, 0, len(statement))
    if (again := _CORRECTED.match(text, match.end() + quantity.end, stop)) and (
        better := number_first(_statement(text, again.end(), stop))
    ):
        return _found(better, again.end())
    return _found(quantity, match.end())


def _read_boxed(solution: Solution, match: re.Match[str], stop: int) -> Found | None:
    text = solution.text
    if not match[0].endswith("{"):
        quantity = quantity_at(text, match.end())
        return _found(quantity, 0) if quantity else None
    end = closing_brace(text, match.end())
    if end is None:
        return None  # cut off inside the box, or another box inside, which counts
    content = text[match.end() : end - 1]
    before = solution.joined_box(match.start())
    if before is not None and (other := _content(before.content)).value is not None:
        quantity = _content(content)
        if quantity.value is not None and quantity.value != other.value:
            return Found(Quantity(None, content, 0, len(content)), match.end() + len(content))
    return _found(_content(content), match.end())


def _content(content: str) -> Quantity:
    """Read what stands in a box: a number, or a `Quantity` without a value."""
    quantity = number_first(content) or only_number(content)
    last_side = content.rpartition("=")[2]
    if NOT_WORKED_OUT.search(last_side) or has_unknown(last_side):
        quantity = None
    return quantity or Quantity(None, content, 0, len(content))


def _read_answer_tag(solution: Solution, match: re.Match[str], stop: int) -> Found | None:
    content = tag_content(solution.text, match.end(), min(stop, match.end() + LONGEST_STATEMENT))
    if content is None:
        return None
    quantity = _content(content.strip())
    if quantity.value is None and "\n" in content.strip():
        return None  # a whole solution, with markers of its own
    return Found(quantity, match.end() + len(content))


def _read_a_colon(solution: Solution, match: re.Match[str], stop: int) -> Found | None:
    text = solution.text
    if match["letter"] and solution.has_b:
        return None  # one of the things called A, B, ...
    statement = _statement(text, match.end(), stop)
    quantity = number_first(statement)
    alone = match.end() + len(statement) >= solution.end
    if quantity is None and _CHOICE.fullmatch(statement) and not match["letter"]:
        quantity = Quantity(None, statement, 0, len(statement))
    elif quantity is None:
        quantity = only_number(statement) if alone else None
    elif not alone and (
        not UNITS.fullmatch(statement[quantity.end :])
        or (EQUALS.search(statement) and _GOES_ON_WITH_SUMS.match(text, match.end() + len(statement), stop))
        or _FIRST_OF_LIST.match(text, match.end(), stop)
    ):
        quantity = None  # "A: 15 trees were there at first. Then ...": the solution, not the answer
    return _found(quantity, match.end()) if quantity else None


def _read_bold(solution: Solution, match: re.Match[str], stop: int) -> Found | None:
    text, content = solution.text, match[1]
    quantity = number_first(content)
    if quantity is None:
        named = re.search(r"[:=]|\b(?:is|are)\b", content)
        quantity = only_number(content) if named else None
        if quantity is None or not UNITS.fullmatch(content[quantity.end :]):
            return None
    elif content.rstrip().endswith(":") or not UNITS.fullmatch(content[quantity.end :]):
        return None  # a heading
    line_begin = text.rfind("\n", max(0, match.start() - 200), match.start()) + 1
    line_start = not text[line_begin or max(0, match.start() - 200) : match.start()].strip(" -*•#")
    marked = content.strip() + rest_of_line(text, match.end(), match.end() + 200)
    if line_start and re.match(r"\d+[.)]\s+\S", marked):
        return None  # "**1.** Find the price": a numbered step
    return _found(quantity, match.start(1))


_READERS: dict[str, Callable[[Solution, re.Match[str], int], Found | None]] = {
    "hash": _read_hash,
    "answer_is": _read_answer_is,
    "answer_tag": _read_answer_tag,
    "boxed": _read_boxed,
    "a_colon": _read_a_colon,
    "bold": _read_bold,
}
