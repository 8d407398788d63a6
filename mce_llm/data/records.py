"""Records on disk: reading .json, .jsonl, .csv and .tsv files exactly, compressed or not, and writing .jsonl.

The files are read with Python's own parsers, so that values keep the type and the text they have in the
file (a table loader may turn the answer "2020-01-01" into a date), and an error can name its line.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mce_llm.data.conversations import is_message
from mce_llm.data.errors import DataError, problem_list, shorten
from mce_llm.data.formats import fits_a_format
from mce_llm.running.files import whole_file
from mce_llm.running.messages import cause

_SHOWN = 5
_COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
TEXT_FILES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")

Record = dict[str, Any]
Splits = dict[str, tuple[list[Record], list[str]]]
"""Split → its records, and for each the words that place it in the file."""


def kind_of(path: Path) -> str:
    """The ending that says what a file holds, without that of its compression: ``.jsonl`` for ``a.jsonl.gz``."""
    inner = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    return inner.suffix.lower()


def read_records(path: Path) -> Splits:
    """Read every record of a .json, .jsonl, .csv or .tsv file, perhaps compressed as .gz, .bz2 or .xz.

    A .json file holds a list of objects, JSON lines, or one object with the list under a name, such as ``data``; where
    it has several lists, each is a split.

    Args:
        path: The file, in UTF-8.

    Returns:
        The records by split: one called ``train``, but for a file of several lists. Each has the words that place it in
        the file: ``"line 3"`` for JSON lines, ``"record 3"`` otherwise (both counted from 1).

    Raises:
        DataError: The file is empty, is not UTF-8, is damaged, or holds something other than records.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if (decompress := _COMPRESSED.get(path.suffix.lower())) is not None:
        try:
            content = decompress(content)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path}: not a whole {path.suffix} file ({error}); copy it again") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected one record a line")
    # A list is none of JSON lines, whatever the file is called.
    if kind_of(path) == ".json" or (
        kind_of(path) in (".jsonl", ".ndjson") and text.lstrip()[0] == "[" and "\n[" not in text.strip()
    ):
        return _read_json(path, text)
    readers: dict[str, Callable[[Path, str], tuple[list[Record], list[str]]]] = {
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".csv": _read_csv,
        ".tsv": _read_csv,
    }
    return {"train": readers[kind_of(path)](path, text)}


def _read_json(path: Path, text: str) -> Splits:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip()[0] != "[":
            return {"train": _read_json_lines(path, text)}
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}; "
            "expected a list of objects"
        ) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # JSON, with a number too long or brackets too deep for Python
        raise DataError(f"{path}: cannot be read as JSON: {cause(error)}") from error
    if isinstance(found, dict):
        if not fits_a_format(found) and (lists := _lists_of_records(found)):
            placed = {name: _placed(path, records, f"{name}, ") for name, records in lists.items()}
            return placed if len(placed) > 1 else {"train": next(iter(placed.values()))}
        # One record, of one conversation perhaps, on one line or on many.
        on_one_line = "\n" not in text.strip()
        return {"train": _read_json_lines(path, text) if on_one_line else ([found], ["record 1"])}
    if not found:
        raise DataError(f"{path}: the file is an empty list; expected records")
    return {"train": _placed(path, found if isinstance(found, list) else [found])}


def _lists_of_records(found: dict[str, Any]) -> dict[str, list[Record]]:
    """The lists of an object that holds records in place of being one: a conversation's messages are none."""
    lists = {
        name: value
        for name, value in found.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    return {} if any(is_message(value[0]) for value in lists.values()) else lists


def _placed(path: Path, records: list[Any], inside: str = "") -> tuple[list[Record], list[str]]:
    places = [f"{inside}record {number}" for number in range(1, len(records) + 1)]
    _check_objects(path, list(zip(places, records, strict=True)))
    return records, places


def _read_json_lines(path: Path, text: str) -> tuple[list[Record], list[str]]:
    parsed: list[tuple[str, Any]] = []
    broken: list[str] = []
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            parsed.append((f"line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            broken.append(f"line {number}, column {error.colno}: {error.msg}: {shorten(line.strip())}")
        except (ValueError, RecursionError) as error:  # a number too long or brackets too deep for Python
            broken.append(f"line {number}: {cause(error)}: {shorten(line.strip())}")
    if broken:
        raise DataError(
            f"{path}: {len(broken)} of {len(parsed) + len(broken)} lines are not valid JSON; expected one "
            f"object a line:{problem_list(broken[:_SHOWN], len(broken))}"
        )
    _check_objects(path, parsed)
    return [record for _, record in parsed], [place for place, _ in parsed]


def _read_csv(path: Path, text: str) -> tuple[list[Record], list[str]]:
    # A row that is too long or too short gets None, as a key or as values.
    with _fields_of_any_length():
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(path, text))
        try:
            rows: list[Record] = list(reader)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.reader.line_num}: not valid {kind_of(path)[1:].upper()}: {error}"
            ) from error
    if not rows:
        raise DataError(f"{path}: there is a header but no record below it")
    header = list(reader.fieldnames or ())
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(
            f"{path}: the header has {twice[0]!r} more than once; give every column a name of its own"
        )
    places = [f"record {number}" for number in range(1, len(rows) + 1)]
    ragged = [
        f"{place}: not the {len(header)} fields of the header; quote fields that hold a "
        f"{'tab' if kind_of(path) == '.tsv' else 'comma'}"
        for place, row in zip(places, rows, strict=True)
        if None in row or None in row.values()
    ]
    if ragged:
        raise DataError(
            f"{path}: {len(ragged)} of {len(rows)} records do not fit the header:"
            f"{problem_list(ragged[:_SHOWN], len(ragged))}"
        )
    return rows, places


def _delimiter(path: Path, text: str) -> str:
    """A tab for .tsv; for .csv a comma, but for a header that has none and semicolons or tabs, as some programs write."""
    if kind_of(path) == ".tsv":
        return "\t"
    header = next(csv.reader(io.StringIO(text, newline="")), [])
    if len(header) == 1:
        for other in (";", "\t"):
            if other in header[0]:
                return other
    return ","


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift the limit of Python's parser, 131,072 characters; a whole chat or a proof is longer at times."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _check_objects(path: Path, placed: list[tuple[str, Any]]) -> None:
    wrong = [
        f"{place}: {type(record).__name__} {shorten(record)}"
        for place, record in placed
        if not isinstance(record, dict)
    ]
    if wrong:
        raise DataError(
            f'{path}: {len(wrong)} of {len(placed)} records are not objects; expected {{"question": ..., '
            f'"response": ...}} or the like:{problem_list(wrong[:_SHOWN], len(wrong))}'
        )


def write_jsonl(records: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Write records as JSON lines, all or nothing.

    Args:
        records: The records; their values must be JSON values.
        path: The target; missing folders are made, an older file is replaced.

    Returns:
        The path written.

    Raises:
        TypeError: A value is not a JSON value. The older file, if any, is left as it was.
        ValueError: A number is infinite or NaN; the same holds.
    """
    target = Path(path)
    with whole_file(target) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    return target
