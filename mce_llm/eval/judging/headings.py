"""Headings of the parts of a solution, and the numbers in them that name or count a part and are no result."""

from __future__ import annotations

import re

GOES_ON = re.compile(r"[.):]\s*[*_]*\s*[A-Za-z]")
"""What stands behind the number of a heading such as `1. Find the price`."""
NUMBERED_HEADING = re.compile(r"#{4,}[ \t]*[*_]*\d+" + GOES_ON.pattern)
"""A heading with the marks of a final answer: `#### 1. Find the price`."""
_NAMED = (
    r"[\s*_]*(?:the\s+)?(?:[A-Z][\w'-]*\s+){0,2}(?:Case|Step|Part|Method|Option|Example|Solution|Scenario|Attempt|Approach"
    r"|Check|Section|Phase|Stage|Chapter|Exercise|Problem|Question|Task|Iteration|Equation|Note|Reason|Way|Figure|Lemma|Claim"
    r"|Test|Trial|Hint|Verification|Condition|Situation|Possibility)s?\s*#?\d+(?:\.\d+)*[a-z]?\b[\s:.)*_-]*"
)
_NAME = re.compile(_NAMED, re.IGNORECASE)
_NUMBER = re.compile(
    rf"^[ \t]*(?:#{{1,6}}[ \t]*[*_]*(?:\d+[.):](?=\s*[*_]*\s*[A-Za-z])|{_NAMED})|[*_]{{2}}{_NAMED})",
    re.IGNORECASE | re.MULTILINE,
)
_WORDS = re.compile(
    r"[\s*_]*(?:(?:final|the|our|quick|double) )*(?:verification|verify(?:ing)?|conclusion|summary|explanation|solution|answer"
    r"|check(?:ing)?|notes?|reasoning|analysis|results?|steps?|discussion|proof|remarks?|setup|given|calculations?|breakdown"
    r"|recap|thoughts?)(?: (?:of|for|the|step|by|answer|solution|results?))*[\s*_:.]*",
    re.IGNORECASE,
)


def without_heading(line: str) -> str:
    """Return what a line says behind the name of a heading, such as `Case 2:`."""
    heading = _NAME.match(line)
    return line[heading.end() :] if heading else line


def is_heading(line: str) -> bool:
    """Whether a line behind `####` names a part, such as `Case 2` or `Verification`, and says nothing else."""
    return not without_heading(line).strip(" *_:.") or _WORDS.fullmatch(line) is not None


def without_headings(solution: str) -> str:
    """Drop the numbers that name or count parts of a solution in its headings."""
    return _NUMBER.sub("", solution)
