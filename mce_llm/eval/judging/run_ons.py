"""Where a solution ends: a model that is not stopped goes on with further questions, and their answers are not the answer.

A further question begins where one is posed, not where a word such as "Example 1:" stands: solutions have parts, and
repeat their own question. What tells them apart is whether an answer was completed before, whether something is asked, and
whether labels count on from one in the same solution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mce_llm.eval.judging.reasoning import END_OF_TEXT

_LABELS = "Question|Q|Problem|Exercise|Instruction|Input|User|Human|Task|Example|QUESTION|PROBLEM"
_CUT = re.compile(
    rf"(?P<end>{END_OF_TEXT})"
    r"|(?P<turn><\|im_start\|>|<\|start_header_id\|>|<\|user\|>|<\|start\|>|<start_of_turn>|\[INST\]"
    r"|Below is an instruction that describes|(?<!#)#{2,6}[ \t]*Instruction\b)"
    rf"|(?:^|\n)[ \t]*(?:#{{1,6}}[ \t]*)?(?:\*\*|__)?(?P<label>{_LABELS})(?:[ \t]*#?(?P<number>\d{{1,4}}))?(?:\*\*|__)?[ \t]*:"
    r"|(?<!#)#{2,6}[ \t]*(?P<heading>Question|Problem|Input|User|Human)(?:[ \t]*#?(?P<place>\d{1,4}))?[:*_ \t]*(?=\n|$)"
    r"|(?<=\s)(?P<inline>Q|Question) ?\d*:"
)
_WRITTEN = re.compile(r"\S")
_SPEAKERS = ("User", "Human", "Instruction")
_SHORT = 100  # characters
_LONGEST_QUESTION = 800  # characters in which a label must ask, for what follows to be a question
_ANSWER_BEGINS = re.compile(
    r"\n[ \t>]*[*_#]{0,4}[ \t]*(?:A|Ans|Answer|Solution|Response|Assistant|Output)\b[*_ \t]{0,4}\d{0,3}[*_ \t]{0,4}:|\n[ \t]*\n"
    r"|\\boxed|####|\b[Aa]nswer is\b"
)
# What leads in, so that the numbers in it are no result: "Let me check 2 examples."
_LEADS_IN = re.compile(
    r"\b(?:let(?:'s| us| me)|first|restat\w+|rewrit\w+|re-?read|given|check|consider|understand|here (?:is|are)|break|below"
    r"|we (?:need|want|have|will|can|are)|to solve|this (?:problem|question|task|is|has)|(?:problem|question) (?:is|has|says|asks)"
    r"|(?:parts|steps|cases|examples|ways|tasks|problems|questions|facts|things|methods))\b|:\s*$",
    re.IGNORECASE,
)
_CALCULATES = re.compile(r"=|\d\s*[-+*/×÷]\s*\d")
_ASKS = re.compile(r"\b(?:How (?:many|much|long|far|old|tall|fast|big)|What(?: is| was| are|'s| will))\b")
_CONNECTIVE = re.compile(
    r"(?:So|Now|Then|Next|Therefore|Thus|Hence|Finally|Since|We|Let|Step|To|But|Wait|However|Oops|No|Actually)\b"
)
_PARAGRAPH = re.compile(r"\n[ \t]*\n(?=[A-Z])")
_SENTENCE_ENDS = re.compile(r"[.!] ")
_HOW_OR_WHAT = re.compile(r"\b(?:[Hh]ow|[Ww]hat|[Ww]hich)\b")
_TASK = re.compile(r"(?:Find|Compute|Calculate|Determine|Evaluate|Solve|Simplify|Express|Factor)\b")

_BEGINS_CORRECTION = re.compile(
    r"[\s,;:.*_>#\"'(\u2014-]*(?:wait|oops|nope|no(?=[\s]*[,.!;\u2014-])|actually|sorry|hmm+|hold on|correction|edit:|update:"
    r"|on second thoughts?|scratch that|strike that|mistake|error|wrong|incorrect|not (?:quite|right|correct)"
    r"|let(?:'s| me| us) (?:re-?\w+|double|correct|fix|try again|start over|check (?:that|this|again|my|the|it)\b)"
    r"|i (?:made|forgot|missed|mis\w+|overlooked|should|was wrong|need to (?:re|correct|fix))|i(?:'ve| have) made"
    r"|my (?:mistake|bad|apologies)|apologies|i apologi[sz]e|re-?(?:check|calculat|comput|consider|read|do)\w*"
    r"|(?:but |however,? )?(?:that|this|it)(?:'s| is| was| can't| cannot| can not| isn't| wasn't| doesn't| does not)?\s+(?:\w+ )?"
    r"(?:wrong|incorrect|right|correct|misses|forgets|ignores|counts|leaves out|a mistake|an error|be right|add up|work)\b"
    r"|but (?:wait|i )|however,? (?:i|we) |there(?:'s| is| was) (?:a |an )?(?:mistake|error))",
    re.IGNORECASE,
)
_CORRECTS = re.compile(
    r"\b(?:correct(?:ed)? (?:answer|value|total|result|amount|calculation)|made (?:a|an) (?:\w+ )?(?:mistake|error)|my mistake"
    r"|I (?:forgot|missed|misread|miscalculated|overlooked)|(?:answer|total|result|it|that) should (?:be|have been)"
    r"|(?:that|this|above|answer|it)(?:'s| is| was) (?:wrong|incorrect|not (?:right|correct))|let me (?:re-?\w+|correct|fix)"
    r"|recalculat\w+|re-?check\w*)\b",
    re.IGNORECASE,
)
_LONGEST_CORRECTION = 4000


def solutions(text: str, first_answer: int | None) -> Iterator[str]:
    """Cut a text where a further question begins; pieces without text are left out.

    Args:
        text: What a model wrote, outside of its thoughts.
        first_answer: Where the first marked answer of the text ends, or None where it has none.

    Yields:
        The pieces in order, the first solution first.
    """
    start = 0  # of the piece
    labels: dict[str, set[int]] = {}  # word → its numbers in this piece
    written = _next_written(text, start)
    last_label: int | None = None
    for match in _CUT.finditer(text):
        word = match["label"] or match["heading"] or match["inline"]
        is_blank = written >= match.start()
        if word is None or is_blank:
            if not is_blank:
                yield text[start : match.start()]
            start, labels, written = match.end(), {}, _next_written(text, match.end())
            last_label = None if word is None else match.end()
            if word is not None:
                labels[word.title()] = {_number(match)}
            continue
        number = _number(match)
        counts_on = number > 1 and number - 1 in labels.get(word.title(), ())
        answered = first_answer is not None and start < first_answer <= match.start() + 1
        asked = _asked(text, match.end())
        asks = asked is not None
        if answered:
            cuts = asks or not counts_on
        else:
            before = text[start if last_label is None else last_label : match.start()]
            is_solved = bool(_CALCULATES.search(before[-2000:])) or (
                last_label is None and any(map(str.isdigit, before)) and not _LEADS_IN.search(before[-300:])
            )
            # A short question without numbers is one that the solution asks itself.
            is_new = asked is not None and (len(asked) > _SHORT or any(map(str.isdigit, asked)))
            opens = is_new or word in _SPEAKERS or (word in ("Q", "Question") and not number and not asks)
            cuts = is_solved and opens and not (counts_on and first_answer is not None)
        if cuts:
            yield text[start : match.start()]
            start, labels, written = match.end(), {}, _next_written(text, match.end())
        last_label = match.end()
        labels.setdefault(word.title(), set()).add(number)
    if text[start:].strip():
        yield text[start:]


def _next_written(text: str, position: int) -> int:
    match = _WRITTEN.search(text, position)
    return match.start() if match else len(text)


def _number(match: re.Match[str]) -> int:
    return int(match["number"] or match["place"] or 0)


def _asked(text: str, position: int) -> str | None:
    """The question that a label opens, where it asks something before an answer begins."""
    limit = position + _LONGEST_QUESTION
    end = _ANSWER_BEGINS.search(text, position, limit)
    mark = text.find("?", position, end.start() if end else limit)
    return text[position:mark] if mark >= 0 else None


def next_question(text: str, position: int, end: int | None = None) -> int | None:
    """Return where the next "How many ...?" or "What is ...?" before `end` ends, or None."""
    mark, end = -1, len(text) if end is None else end
    for match in _ASKS.finditer(text, position, end):
        if mark < match.end():
            mark = text.find("?", match.end(), end)
            if mark < 0:
                return None
        if mark - match.end() <= _LONGEST_QUESTION:
            return mark + 1
    return None


def next_story(text: str, position: int) -> int | None:
    """Return where a paragraph ends that poses a problem, or None: it tells something and asks, or says what to find."""
    for match in _PARAGRAPH.finditer(text, max(0, position)):
        begin = match.end()
        line_end = text.find("\n", begin, begin + 1300)
        limit = line_end if line_end >= 0 else min(len(text), begin + 1300)
        if _CONNECTIVE.match(text, begin):
            continue
        told = _SENTENCE_ENDS.search(text, begin, limit)
        asked = told and _HOW_OR_WHAT.search(text, told.end(), limit)
        mark = text.find("?", asked.end(), limit) if asked else -1
        if mark >= 0:
            return mark + 1
        line = text[begin:limit].rstrip()
        has_numbers = any(map(str.isdigit, line)) and ":" not in line and "boxed" not in line
        if has_numbers and (
            (line.endswith("?") and _HOW_OR_WHAT.search(line)) or (line.endswith(".") and _TASK.match(line))
        ):
            return limit
    return None


def takes_back(text: str, start: int, end: int) -> bool:
    """Whether what stands between two final answers takes the first back: "Oops.", "No, that misses a bag".

    Args:
        text: The solution.
        start: Where the first answer ends.
        end: Where the second begins.

    Returns:
        True for a correction that opens one of the next sentences, or is said before another question is asked.
    """
    end = min(end, start + _LONGEST_CORRECTION)
    sentences = [start, *(match.end() for match in re.finditer(r"[.!?](?=\s)|\n", text[start:end]))]
    sentences = [start, *(start + place for place in sentences[1:])]
    opened = 0
    for place in sentences:
        if _BEGINS_CORRECTION.match(text, place, end):
            return True
        opened += bool(text[place : place + 40].strip(" \n.#*_"))
        if opened == 4:
            break
    asked = next_question(text, start, end)
    corrects = _CORRECTS.search(text, start, end)
    return corrects is not None and (asked is None or corrects.start() < asked)
