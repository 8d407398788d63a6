"""Single values of a record: texts, flags and JSON, each checked where it is taken out.

What a record is and which values it needs is known in `formats` and `conversations`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mce_llm.data.errors import shorten

_CALCULATOR = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")


class BadRecord(Exception):
    """Why one record cannot be used; `check_records` says where it is."""


def text_of(record: Mapping[str, Any], column: str, *, empty: bool = False) -> str:
    """The text in a column.

    Args:
        record: A record or a message.
        column: Its column.
        empty: Whether a text without a single visible character is one.

    Raises:
        BadRecord: There is none, or it is no text.
    """
    value = record.get(column)
    if value is None:
        raise BadRecord(f"{column!r} is missing")
    if not isinstance(value, str):
        raise BadRecord(f"{column!r} is {type(value).__name__} {shorten(value)}, not a string")
    if not empty and not value.strip():
        raise BadRecord(f"{column!r} is empty")
    return whole_text(value, repr(column))


def whole_text(value: str, what: str) -> str:
    r"""The text, if it can be written in UTF-8.

    Raises:
        BadRecord: It holds half of a surrogate pair, as JSON's "\\ud83d" alone does.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(
            f"{what} holds half of a surrogate pair, \\u{ord(value[error.start]):04x}, at character {error.start + 1}, "
            "which is no character; the text was cut in the middle of one (write it again from its source)"
        ) from None
    return value


def without_calculator_notes(solution: str) -> str:
    """A solution of GSM8K without its ``<<48/2=24>>``, which are for a calculator that reads along."""
    return _CALCULATOR.sub("", solution)


def switch_of(value: Any, what: str) -> bool:
    """A yes or no, as a boolean or as 0 and 1.

    Raises:
        BadRecord: It is something else, such as a weight between the two.
    """
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise BadRecord(f"{what} is {shorten(value)}; it can be 0 or false (not trained), or 1 or true (trained)")


def read_json(value: Any, what: str) -> Any:
    """The value, which some files keep as JSON in a string.

    Raises:
        BadRecord: The string holds no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadRecord(f"{what} is no JSON ({error}): {shorten(value)}") from None


def json_text(value: Any, what: str) -> str:
    """JSON that gives the value back.

    Raises:
        BadRecord: It is no JSON value, or a text in it is none.
    """
    try:
        return whole_text(json.dumps(value, ensure_ascii=False, allow_nan=False), what)
    except (TypeError, ValueError) as error:
        raise BadRecord(f"{what} cannot be kept as JSON: {error}") from None


def without_nulls(value: Any) -> Any:
    """The value without the keys that are null: a table gives every key of one record to all of them."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
