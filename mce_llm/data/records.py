"""Records on disk: reading .json, .jsonl and .csv files exactly, and writing .jsonl.

The files are read with Python's own parsers, so that values keep the type and the text they have in the
file (a table loader may turn the answer "2020-01-01" into a date), and an error can name its line.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mce_llm.data.errors import DataError, problem_list, shorten
from mce_llm.running.files import whole_file

_SHOWN = 5

Record = dict[str, Any]


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """Read every record of a .json (a list of objects, or JSON lines), .jsonl or .csv file.

    Args:
        path: The file, in UTF-8.

    Returns:
        The records, and for each the words that place it in the file: ``"line 3"`` for JSON lines,
        ``"record 3"`` otherwise (both counted from 1).

    Raises:
        DataError: The file is empty, is not UTF-8, or holds something other than records.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected one record a line")
    readers: dict[str, Callable[[Path, str], tuple[list[Record], list[str]]]] = {
        ".json": _read_json,
        ".jsonl": _read_json_lines,
        ".csv": _read_csv,
    }
    return readers[path.suffix.lower()](path, text)


def _read_json(path: Path, text: str) -> tuple[list[Record], list[str]]:
    if text.lstrip()[0] != "[":
        return _read_json_lines(path, text)
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}; "
            "expected a list of objects"
        ) from error
    if not records:
        raise DataError(f"{path}: the file is an empty list; expected records")
    places = [f"record {number}" for number in range(1, len(records) + 1)]
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
    if broken:
        raise DataError(
            f"{path}: {len(broken)} of {len(parsed) + len(broken)} lines are not valid JSON; expected one "
            f"object a line:{problem_list(broken[:_SHOWN], len(broken))}"
        )
    _check_objects(path, parsed)
    return [record for _, record in parsed], [place for place, _ in parsed]


def _read_csv(path: Path, text: str) -> tuple[list[Record], list[str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="")
    try:
        rows: list[Record] = list(reader)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: there is a header but no record below it")
    places = [f"record {number}" for number in range(1, len(rows) + 1)]
    fields = len(reader.fieldnames or ())
    ragged = [
        f"{place}: not the {fields} fields of the header; quote fields that hold a comma"
        for place, row in zip(places, rows, strict=True)
        if "" in row or None in row.values()
    ]
    if ragged:
        raise DataError(
            f"{path}: {len(ragged)} of {len(rows)} records do not fit the header:"
            f"{problem_list(ragged[:_SHOWN], len(ragged))}"
        )
    return rows, places


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
