"""Record formats: recognising GSM8K, MATH, MetaMathQA, conversations and plain pairs, and converting them.

Every format becomes either ``question``/``response`` (and ``answer``, the gold final answer, where it is
known) or ``messages``. A record that does not fit is reported, never dropped or repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Features, Value

from mce_llm.data.boxed import boxed_contents
from mce_llm.data.errors import DataError, problem_list, shorten
from mce_llm.running.messages import nearest_hint

_SHOWN = 5

# Role → column of each format. A `columns` mapping may point a role at another column.
FORMATS: dict[str, dict[str, str]] = {
    "gsm8k": {"question": "question", "answer": "answer"},
    "math": {"question": "problem", "response": "solution"},
    "metamath": {"question": "query", "response": "response"},
    "plain": {"question": "question", "response": "response"},
    "chat": {"messages": "messages"},
}
_PERHAPS_WITH_ANSWER = ("plain", "math")
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_CALCULATOR = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")
_GSM8K_FINAL = re.compile(r"^####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_METAMATH_FINAL = re.compile(r"The answer is:?[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


class _BadRecord(Exception):
    """Why one record cannot be used."""


@dataclass(frozen=True)
class RecordFormat:
    """A recognised format: its name, and which column plays which role."""

    name: str
    columns: Mapping[str, str]

    @property
    def features(self) -> Features:
        """The columns that conversion gives, with their types."""
        if self.name == "chat":
            return Features({"messages": [{"role": Value("string"), "content": Value("string")}]})
        columns = {"question": Value("string"), "response": Value("string")}
        if self.name in {"gsm8k", "math", "metamath"} or "answer" in self.columns:
            columns["answer"] = Value("string")
        return Features(columns)

    def convert(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Convert one record that `check_records` has accepted; the keys are those of `features`."""
        if self.name == "chat":
            return {"messages": _messages(record, self.columns["messages"])}
        converted = {"question": _text(record, self.columns["question"])}
        if self.name == "gsm8k":
            solution = _text(record, self.columns["answer"])
            finals = _GSM8K_FINAL.findall(solution)
            if not finals:
                raise _BadRecord(
                    f"{self.columns['answer']!r} has no '#### <final answer>' line: {shorten(solution[-40:])}"
                )
            return converted | {"response": _CALCULATOR.sub("", solution), "answer": finals[-1]}
        response = converted["response"] = _text(record, self.columns["response"])
        if self.name == "metamath":
            finals = _METAMATH_FINAL.findall(response)
            return converted | {"answer": finals[-1] if finals else None}
        if "answer" in self.columns:
            converted["answer"] = _text(record, self.columns["answer"])
        elif self.name == "math":
            boxed = [content for content, _ in boxed_contents(response)]
            if not boxed:
                raise _BadRecord(
                    f"{self.columns['response']!r} has no \\boxed{{<final answer>}}: {shorten(response[-40:])}"
                )
            converted["answer"] = boxed[-1]
        return converted


def detect_format(
    source: str,
    available: Sequence[str],
    sample: Iterable[Mapping[str, Any]],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
) -> RecordFormat:
    """Decide what the records are, from their columns or from what the caller says.

    Args:
        source: Where the records come from, for messages.
        available: The columns there are.
        sample: A few records, to tell GSM8K's ``#### 18`` from a plain answer.
        format: ``"auto"`` or a key of `FORMATS`.
        columns: Role (``question``, ``response``, ``answer``, ``messages``) → column.

    Returns:
        The format with the column of each role.

    Raises:
        DataError: The format is unknown, a named column does not exist, or nothing known fits.
    """
    if format != "auto" and format not in FORMATS:
        raise DataError(
            f"unknown format {format!r}{nearest_hint(format, FORMATS)}; choose 'auto' or one of "
            f"{', '.join(FORMATS)}"
        )
    columns = dict(columns or {})
    _check_columns(source, available, columns)
    name = format if format != "auto" else _guess(available, sample, columns)
    if name is None:
        raise DataError(
            f"{source}: no known format has the columns {_listed(available)}; say which holds what, as in "
            'columns={"question": "...", "response": "..."} or columns={"messages": "..."}'
        )
    defaults = dict(FORMATS[name])
    if name == "chat" and "messages" not in available:
        defaults["messages"] = "conversations"
    if name in _PERHAPS_WITH_ANSWER and not columns and "answer" in available:
        defaults["answer"] = "answer"
    chosen = defaults | columns
    foreign = sorted(
        set(chosen) - set(FORMATS[name]) - ({"answer"} if name in _PERHAPS_WITH_ANSWER else set())
    )
    if foreign:
        raise DataError(
            f"{source}: format {name!r} has no role {', '.join(foreign)}; its roles are "
            f"{', '.join(FORMATS[name])}"
        )
    for role, column in chosen.items():
        if column not in available:
            raise DataError(
                f"{source}: format {name!r} needs the {role} in the column {column!r}"
                f"{nearest_hint(column, available)}, and the columns are {_listed(available)}; point at it "
                f'with columns={{"{role}": "..."}}'
            )
    return RecordFormat(name, chosen)


def _check_columns(source: str, available: Sequence[str], columns: Mapping[str, str]) -> None:
    roles = ("question", "response", "answer", "messages")
    problems = [
        f"unknown role {role!r}{nearest_hint(role, roles)}; the roles are {', '.join(roles)}"
        for role in columns
        if role not in roles
    ]
    problems += [
        f"there is no column {column!r} for the {role}{nearest_hint(column, available)}"
        for role, column in columns.items()
        if role in roles and column not in available
    ]
    if problems:
        raise DataError(
            f"{source}: columns={dict(columns)} cannot be used:{problem_list(problems, len(problems))}"
            f"\nThe columns are {_listed(available)}"
        )


def _guess(
    available: Sequence[str], sample: Iterable[Mapping[str, Any]], columns: Mapping[str, str]
) -> str | None:
    if "messages" in columns:
        return "chat"
    if "response" in columns:
        return "plain"
    if "answer" in columns:
        return "gsm8k"
    there = set(available)
    if there & {"messages", "conversations"}:
        return "chat"
    if {"question", "response"} <= there:
        return "plain"
    if {"problem", "solution"} <= there:
        return "math"
    if {"query", "response"} <= there:
        return "metamath"
    if {"question", "answer"} <= there and any("####" in str(record.get("answer")) for record in sample):
        return "gsm8k"
    return None


def check_records(
    source: str, records: Iterable[tuple[str, Mapping[str, Any]]], layout: RecordFormat
) -> Iterator[dict[str, Any]]:
    """Convert records one by one, and report at the end all those that cannot be used.

    Args:
        source: Where the records come from, for messages.
        records: Each with the words that place it, such as ``"line 3"``.
        layout: The format they are in.

    Yields:
        The converted record, for each good one.

    Raises:
        DataError: At least one record cannot be used: how many, and the first few.
    """
    first: list[str] = []
    bad = total = 0
    for place, record in records:
        total += 1
        try:
            yield layout.convert(record)
        except _BadRecord as error:
            bad += 1
            if len(first) < _SHOWN:
                first.append(f"{place}: {error}")
    if bad:
        raise DataError(
            f"{source}: {bad} of {total} records cannot be used as format {layout.name!r}; correct or remove "
            f"them:{problem_list(first, bad)}"
        )


def _text(record: Mapping[str, Any], column: str) -> str:
    if record.get(column) is None:
        raise _BadRecord(f"{column!r} is missing")
    value = record[column]
    if not isinstance(value, str):
        raise _BadRecord(f"{column!r} is {type(value).__name__} {shorten(value)}, not a string")
    if not value.strip():
        raise _BadRecord(f"{column!r} is empty")
    return value


def _messages(record: Mapping[str, Any], column: str) -> list[dict[str, str]]:
    turns = record.get(column)
    if not isinstance(turns, list) or not turns:
        raise _BadRecord(f"{column!r} is {shorten(turns)}, not a list of messages")
    messages: list[dict[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise _BadRecord(f"message {number} is {shorten(turn)}, not an object with role and content")
        role = turn.get("role") or turn.get("from")
        if role not in _ROLES:
            raise _BadRecord(
                f"message {number} has the role {shorten(role)}; known are {', '.join(sorted(_ROLES))}"
            )
        key = "content" if turn.get("content") is not None else "value"
        try:
            messages.append({"role": _ROLES[role], "content": _text(turn, key)})
        except _BadRecord as error:
            raise _BadRecord(f"message {number}: {error}") from None
    if all(message["role"] != "assistant" for message in messages):
        raise _BadRecord("no message is from the assistant, so there is nothing to train")
    return messages


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(repr(column) for column in columns) or "none"
