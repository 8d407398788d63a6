"""Record formats: which columns play which role, and how a record becomes an example.

Every format becomes either ``question``/``response`` (and ``answer``, the gold final answer, where it is
known) or ``messages``. A record that does not fit is reported, never dropped or repaired.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from datasets import Features, Value

from mce_llm.data.boxed import boxed_answer
from mce_llm.data.conversations import question_of, stored_conversation
from mce_llm.data.errors import DataError, problem_list, shorten
from mce_llm.data.values import BadRecord, text_of, without_calculator_notes
from mce_llm.running.messages import nearest_hint

_SHOWN = 5

# Role → columns that may play it, the first that is there; a `columns` mapping may point a role at another one.
FORMATS: dict[str, dict[str, tuple[str, ...]]] = {
    "gsm8k": {"question": ("question",), "answer": ("answer",)},
    "math": {"question": ("problem",), "response": ("solution",)},
    "metamath": {"question": ("query",), "response": ("response",)},
    "plain": {"question": ("question",), "response": ("response", "solution")},
    "alpaca": {"question": ("instruction",), "response": ("output", "response")},
    "prompt": {"prompt": ("prompt",), "completion": ("completion", "response")},
    "chat": {"messages": ("messages", "conversations", "conversation")},
}
# What a record of the format may have besides.
_OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {
    "metamath": {"system": ("system", "system_prompt"), "history": ("history",)},
    "math": {"answer": ("answer",)},
    "plain": {
        "answer": ("answer",),
        "input": (),
        "system": ("system", "system_prompt"),
        "history": ("history",),
    },
    "alpaca": {
        "answer": ("answer",),
        "input": ("input", "context"),
        "system": ("system", "system_prompt"),
        "history": ("history",),
    },
    "prompt": {
        "answer": ("answer",),
        "system": ("system", "system_prompt"),
        "tools": ("tools",),
        "chat_template_kwargs": ("chat_template_kwargs",),
    },
    "chat": {
        "system": ("system", "system_prompt"),
        "tools": ("tools", "functions"),
        "chat_template_kwargs": ("chat_template_kwargs",),
    },
}
ROLES = tuple(dict.fromkeys(role for roles in (*FORMATS.values(), *_OPTIONAL.values()) for role in roles))
# Optional roles that make a pair a conversation, and so ask for a chat template.
_AS_PAIR = {"prompt": "question", "completion": "response"}
_OF_CONVERSATIONS = ("system", "history", "tools", "chat_template_kwargs")
# Texts that belong to a question and may stand beside it.
CONTEXTS = (
    *("body", "context", "passage", "paragraph", "story", "premise"),
    *("table", "pre_text", "post_text"),
)
# Columns whose content would change what is trained, where the format has no place for them.
MEANINGFUL = (
    *CONTEXTS,
    *("tools", "functions", "system", "system_prompt", "history", "input"),
    *("weight", "loss_weight", "loss_mask", "loss_scale", "loss", "train", "label", "chosen", "rejected"),
    *("rejected_response", "reasoning", "reasoning_content", "thinking", "instruction"),
    *("images", "image", "audios", "audio", "videos", "video"),
)
_GSM8K_FINAL = re.compile(r"^####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_METAMATH_FINAL = re.compile(r"The answer is:?[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)

Filled = Callable[[str], bool]
"""Whether any record has something in a column."""


@dataclass(frozen=True)
class RecordFormat:
    """A recognised format: its name, and which column plays which role.

    Attributes:
        name: A key of `FORMATS`.
        columns: Role → column.
        chat: Whether it gives ``messages``.
        table: Whether null stands for a key that is not there, as in a table.
        asked: Roles that the caller pointed at a column, so that what is wrong with them is an error.
    """

    name: str
    columns: Mapping[str, str]
    chat: bool = False
    table: bool = False
    asked: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What the records are, for messages."""
        return f"format {self.name!r}"

    def features(self, keys: Iterable[str] = ()) -> Features:
        """The columns that conversion gives, with their types.

        Args:
            keys: Keys that at least one converted conversation, or a message of it, has; what none has gets no column.
        """
        columns: dict[str, Any] = {"question": Value("string"), "response": Value("string")}
        if not self.chat:
            if self.name in {"gsm8k", "math", "metamath"} or "answer" in self.columns:
                columns["answer"] = Value("string")
            return Features(columns)
        there = set(keys)
        message = {"role": Value("string"), "content": Value("string")}
        message |= {"trained": Value("bool")} if "trained" in there else {}
        message |= {"fields": Value("string")} if "fields" in there else {}
        columns = {"messages": [message]}
        columns |= {name: Value("string") for name in ("tools", "chat_template_kwargs") if name in there}
        return Features(columns)

    def convert(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Convert one record.

        Raises:
            BadRecord: It cannot be used.
        """
        if self.chat:
            return stored_conversation(record, self.columns, table=self.table)
        columns = self.columns
        if self.name == "prompt":
            converted = {
                "question": text_of(record, columns["prompt"]),
                "response": text_of(record, columns["completion"]),
            }
            return converted | self._answer(record)
        converted = {"question": question_of(record, columns)}
        if self.name == "gsm8k":
            solution = text_of(record, columns["answer"])
            finals = _GSM8K_FINAL.findall(solution)
            if not finals:
                raise BadRecord(
                    f"{columns['answer']!r} has no '#### <final answer>' line: {shorten(solution[-40:])}"
                )
            return converted | {"response": without_calculator_notes(solution), "answer": finals[-1]}
        response = converted["response"] = text_of(record, columns["response"])
        if self.name == "metamath":
            finals = _METAMATH_FINAL.findall(response)
            return converted | {"answer": finals[-1] if finals else None}
        if self.name == "math" and "answer" not in columns:
            boxed = boxed_answer(response)
            if boxed is None:
                raise BadRecord(
                    f"{columns['response']!r} has no \\boxed{{<final answer>}}: {shorten(response[-40:])}"
                )
            return converted | {"answer": boxed[0]}
        return converted | self._answer(record)

    def _answer(self, record: Mapping[str, Any]) -> dict[str, str | None]:
        """The final answer, which training does not need: as text, or null where the record has none."""
        if "answer" not in self.columns:
            return {}
        column = self.columns["answer"]
        value = record.get(column)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return {"answer": json.dumps(value)}
        if "answer" in self.asked or (isinstance(value, str) and value.strip()):
            return {"answer": text_of(record, column)}
        return {"answer": None}


def fits_a_format(keys: Collection[str]) -> bool:
    """Whether a record with these keys is one of a known format."""
    there = set(keys)
    return any(all(there & set(columns) for columns in roles.values()) for roles in FORMATS.values())


def keys_of(example: Mapping[str, Any]) -> set[str]:
    """The keys of a converted example and of its messages, for `RecordFormat.features`."""
    return set(example).union(*example.get("messages", ()))


def detect_format(
    source: str,
    available: Sequence[str],
    sample: Iterable[Mapping[str, Any]],
    *,
    format: str = "auto",
    columns: Mapping[str, str | None] | None = None,
    filled: Filled | None = None,
    table: bool = False,
) -> RecordFormat:
    """Decide what the records are, from their columns or from what the caller says.

    Args:
        source: Where the records come from, for messages.
        available: The columns there are.
        sample: A few records, to tell GSM8K's ``#### 18`` from a plain answer, and texts from lists of messages.
        format: ``"auto"`` or a key of `FORMATS`.
        columns: Role (one of `ROLES`) → column; None for a role that is to be left out.
        filled: Whether any record has something in a column, where that is more than the sample tells.
        table: The records come from a table, in which every record has every key.

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
    sample = list(sample)
    given = dict(columns or {})
    asked = {role: column for role, column in given.items() if column is not None}
    _check_columns(source, available, given)
    name = format if format != "auto" else _guess(available, sample, asked)
    if name is None:
        raise DataError(
            f"{source}: no known format has the columns {_listed(available)}; say which holds what, as in "
            "columns: {question: …, response: …} or columns: {messages: …}"
        )
    optional = _OPTIONAL.get(name, {})
    foreign = sorted(set(given) - set(FORMATS[name]) - set(optional))
    if foreign:
        raise DataError(
            f"{source}: format {name!r} has no role {', '.join(foreign)}; its roles are "
            f"{', '.join([*FORMATS[name], *optional])}"
        )
    chosen = {
        role: asked.get(role) or next((c for c in candidates if c in available), candidates[0])
        for role, candidates in FORMATS[name].items()
    }
    for role, column in chosen.items():
        if column not in available:
            raise DataError(
                f"{source}: format {name!r} needs the {role} in the column {column!r}"
                f"{nearest_hint(column, available)}, and the columns are {_listed(available)}; point at it "
                f"with columns: {{{role}: …}}"
            )
    has = filled or (lambda column: any(record.get(column) for record in sample))
    chosen |= _optional_columns(optional, chosen, available, given, has)
    lists = name == "prompt" and any(
        isinstance(record.get(chosen[role]), list) for record in sample for role in FORMATS[name]
    )
    chat = name == "chat" or lists or any(role in chosen for role in _OF_CONVERSATIONS)
    if name == "prompt" and chat and not lists:  # two texts, with a system prompt or tools
        chosen = {_AS_PAIR.get(role, role): column for role, column in chosen.items()}
    if chat:
        chosen.pop("answer", None)
    return RecordFormat(name, chosen, chat, table, tuple(sorted(asked)))


def _optional_columns(
    optional: Mapping[str, Sequence[str]],
    chosen: Mapping[str, str],
    available: Sequence[str],
    given: Mapping[str, str | None],
    has: Filled,
) -> dict[str, str]:
    """The columns of roles that a record of the format may have besides, where there is something in them."""
    found: dict[str, str] = {}
    for role, usual in optional.items():
        if role in given:
            if (named := given[role]) is not None:
                found[role] = named
            continue
        if role == "answer" and any(given.values()):
            continue
        # An instruction that was pointed at by hand has its input, as any other.
        candidates = (
            _OPTIONAL["alpaca"]["input"]
            if role == "input" and chosen.get("question") == "instruction"
            else usual
        )
        for column in candidates:
            if column in available and column not in chosen.values() and (role == "answer" or has(column)):
                found[role] = column
                break
    return found


def _check_columns(source: str, available: Sequence[str], columns: Mapping[str, str | None]) -> None:
    problems = [
        f"unknown role {role!r}{nearest_hint(role, ROLES)}; the roles are {', '.join(ROLES)}"
        for role in columns
        if role not in ROLES
    ]
    problems += [
        f"there is no column {column!r} for the {role}{nearest_hint(column, available)}"
        for role, column in columns.items()
        if role in ROLES and column is not None and column not in available
    ]
    if problems:
        raise DataError(
            f"{source}: columns={dict(columns)} cannot be used:{problem_list(problems, len(problems))}"
            f"\nThe columns are {_listed(available)}"
        )


def _guess(
    available: Sequence[str], sample: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> str | None:
    if "messages" in columns:
        return "chat"
    if "prompt" in columns or "completion" in columns:
        return "prompt"
    if "response" in columns:
        return "plain"
    if "answer" in columns:
        return "gsm8k"
    there = set(available)
    if there & set(FORMATS["chat"]["messages"]):
        return "chat"
    for name in ("plain", "math", "metamath", "alpaca", "prompt"):
        if all(there & set(candidates) for candidates in FORMATS[name].values()):
            return name
    if {"question", "answer"} <= there and any("####" in str(record.get("answer")) for record in sample):
        return "gsm8k"
    return None


class Layout(Protocol):
    """What `check_records` needs of a format."""

    @property
    def kind(self) -> str:
        """What the records are, for messages."""

    def convert(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Convert one record, or raise `BadRecord`."""


def check_records(
    source: str, records: Iterable[tuple[str, Mapping[str, Any]]], layout: Layout
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
        except BadRecord as error:
            bad += 1
            if len(first) < _SHOWN:
                first.append(f"{place}: {error}")
    if bad:
        raise DataError(
            f"{source}: {bad} of {total} records cannot be used as {layout.kind}; correct or remove "
            f"them:{problem_list(first, bad)}"
        )


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(repr(column) for column in columns) or "none"
