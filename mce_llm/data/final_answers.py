r"""Where a text says its final answer: a reference's value alone, or the mark in a worked solution.

Standard library only. Whether an answer can be judged by is known to the tasks of `mce_llm.eval`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mce_llm.data.boxed import boxed_answer
from mce_llm.data.errors import shorten

ANSWER_PLACE = ("answer_start", "answer_end")
"""Columns of the characters of a solution between which its answer stands."""
_HASHES = re.compile(r"^####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_SAID = re.compile(r"The answer is:?[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_WITH_UNIT = re.compile(r"\s*([-+−]?[\d.,/]*\d)\s+\([^()\d\\]*[A-Za-z]{2}[^()\d\\]*\)\s*")
_NUMBER = re.compile(r"\s*\$?[-+−]?\$?[\d.,]*\d[\d.,]*(?:\s*/\s*\d+)?%?\$?\s*")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_WORDS_OF_AN_ANSWER = 12


class BadReference(Exception):
    """Why a record has no reference answer that can be taken from it."""


def final_answer(text: str, what: str, *, worked: bool = False, said_first: bool = True) -> str:
    r"""Take the reference out of what a record gives as the answer: a value alone, or a worked solution that marks it.

    Args:
        text: The answer or solution.
        what: What it is, for messages.
        worked: It should be a solution: without a mark, nothing but a number is an answer.
        said_first: Of a solution: look for MetaMathQA's "The answer is:" before `####` and `\boxed{}`, not after them.

    Returns:
        What stands behind the last mark, without a unit in parentheses; of boxes joined by a comma, `and` or `or` all; or the
        text itself.

    Raises:
        BadReference: It is a worked text that marks no answer.
    """
    return _answer(text, what, worked, said_first)[0]


def answer_place(text: str, what: str, *, worked: bool = False, said_first: bool = True) -> slice:
    """Return where `final_answer` finds the reference in a text; arguments and errors are the same."""
    return _answer(text, what, worked, said_first)[1]


def _answer(text: str, what: str, worked: bool, said_first: bool) -> tuple[str, slice]:
    marked = _marked(text, said_first=worked and said_first)
    if marked is not None:
        return marked
    if len(_WORD.findall(text)) > _WORDS_OF_AN_ANSWER or (worked and not _NUMBER.fullmatch(text)):
        raise BadReference(
            f"{what} is a text that marks no final answer by '#### …', \\boxed{{…}} or 'The answer is: …': "
            f"{shorten(text[-40:])}"
        )
    with_unit = _WITH_UNIT.fullmatch(text)
    place = slice(*with_unit.span(1)) if with_unit else slice(0, len(text))
    return text[place], place


def marked_answer(text: str, *, said_first: bool = False) -> slice | None:
    r"""Where a solution marks its final answer: behind `####`, in `\boxed{}` or behind "The answer is:".

    Args:
        text: The solution.
        said_first: Look for "The answer is:" before the other marks, not after them.

    Returns:
        The place of what stands behind the last mark of the first kind that there is, from the first to the last of joined
        boxes; None without a mark.
    """
    marked = _marked(text, said_first=said_first)
    return None if marked is None else marked[1]


def _marked(text: str, *, said_first: bool) -> tuple[str, slice] | None:
    marks: list[Callable[[str], tuple[str, slice] | None]] = [_behind(_HASHES), boxed_answer, _behind(_SAID)]
    for mark in (marks[-1:] + marks[:-1]) if said_first else marks:
        if found := mark(text):
            return found
    return None


def _behind(mark: re.Pattern[str]) -> Callable[[str], tuple[str, slice] | None]:
    def last(text: str) -> tuple[str, slice] | None:
        matches = list(mark.finditer(text))
        return (matches[-1][1], slice(*matches[-1].span(1))) if matches else None

    return last
