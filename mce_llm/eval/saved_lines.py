"""Reading the lines of `items.jsonl` back, every field checked by line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.items import Item
from mce_llm.running.messages import cause

Fields = Mapping[str, tuple[str, Callable[[Any], bool]]]
"""Name of a field → what it must be, in words, and whether a value is that."""
_MOST_TOLD = 3


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_text(value: Any) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)


COUNT = ("a whole number of at least 0", is_count)
TEXT = ("a text", is_text)
_ENDS = ("eos", "stop", "length")
ANSWER_FIELDS: Fields = {
    "index": COUNT,
    "sample": COUNT,
    "question": TEXT,
    "gold": TEXT,
    "response": TEXT,
    "predicted": ("a text or null", lambda value: value is None or is_text(value)),
    "found_by": TEXT,
    "correct": ("true or false", lambda value: isinstance(value, bool)),
    "finished": (f"one of {', '.join(_ENDS)}", lambda value: is_text(value) and value in _ENDS),
    "new_tokens": COUNT,
}
"""What a line has that is an answer."""


def numbered_lines(path: Path, fields: Fields, problems: list[str]) -> Iterable[tuple[int, Item]]:
    """Read a file of lines that each are a JSON object with some fields.

    Args:
        path: `items.jsonl`.
        fields: What each line must have.
        problems: To which is added what is wrong with a line, as the lines are read.

    Yields:
        The number of each good line, from 1, and what it holds.

    Raises:
        EvaluationError: The file cannot be read.
    """
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")  # not splitlines(): an answer may hold U+2028
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read: {cause(error)}") from error
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        written = _parsed(line, fields)
        if isinstance(written, str):
            problems.append(f"line {number}: {written}")
        else:
            yield number, written


def refuse_problems(path: Path, what: str, problems: Sequence[str]) -> None:
    """Raise where there are lines that cannot be used.

    Args:
        path: `items.jsonl`.
        what: What the lines should be, in words.
        problems: What is wrong with which.

    Raises:
        EvaluationError: There are any.
    """
    if problems:
        more = f"; … ({len(problems)} lines)" if len(problems) > _MOST_TOLD else ""
        raise EvaluationError(
            f"{path} cannot be read as {what}: {'; '.join(problems[:_MOST_TOLD])}{more}. Restore the "
            "file, or evaluate the model again with --overwrite true"
        )


def parsed_line(line: str) -> Item | str:
    """Read one line.

    Args:
        line: The text.

    Returns:
        The object that it holds, or what is wrong with it, in words; numbers beyond JSON (NaN, Infinity) are wrong.
    """
    try:
        item = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({cause(error)})"
    return item if isinstance(item, dict) else f"must be a JSON object, got {line[:40]!r}"


def wrong_fields(item: Item, fields: Fields) -> str | None:
    """Tell what is wrong with the fields of an object.

    Args:
        item: The object.
        fields: What it must have; further fields are not looked at.

    Returns:
        All of it, in words; None where nothing is.
    """
    missing = [name for name in fields if name not in item]
    if missing:
        return f"lacks {', '.join(missing)}"
    wrong = [
        f"{name} must be {kind}, got {_short(item[name])}"
        for name, (kind, fits) in fields.items()
        if not fits(item[name])
    ]
    return ", ".join(wrong) or None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _parsed(line: str, fields: Fields) -> Item | str:
    """One line, or what is wrong with it."""
    item = parsed_line(line)
    return item if isinstance(item, str) else wrong_fields(item, fields) or item


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
