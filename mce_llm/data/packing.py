"""Packing: several whole examples in one row, kept apart by positions that start again at 0.

transformers keeps packed examples from seeing each other when the batch has ``position_ids`` and no
``attention_mask``, and no key-value cache is made (`CompletionCollator` sees to all three).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa

from mce_llm.data.errors import DataError
from mce_llm.data.prompts import IGNORE_INDEX

_ROWS_PER_CHUNK = 10_000


@dataclass(frozen=True)
class PackingReport:
    """What packing achieved.

    Attributes:
        examples: Examples given, all of them packed.
        rows: Rows they were packed into.
        tokens: Tokens in all.
        max_length: Tokens a row can hold.
        padded_width: Tokens a batch of all examples would have, each padded to the longest.
    """

    examples: int
    rows: int
    tokens: int
    max_length: int
    padded_width: int

    @property
    def efficiency(self) -> float:
        """Share of the rows' room that holds tokens, in (0, 1]."""
        return self.tokens / (self.rows * self.max_length)

    def __str__(self) -> str:
        return (
            f"packed rows          {self.rows:,} of at most {self.max_length:,} tokens, "
            f"{self.examples / self.rows:.1f} examples each\n"
            f"packing efficiency   {self.efficiency:.1%} "
            f"(padded to the longest example: {self.tokens / self.padded_width:.1%})"
        )


def best_fit(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Assign examples to rows by best fit, longest first (Johnson et al., 1974).

    Never more than 11/9 of the fewest rows possible, plus one. The result depends on the lengths alone.

    Args:
        lengths: Tokens of each example, between 1 and ``max_length``.
        max_length: Tokens a row can hold.

    Returns:
        For each row the examples in it, by index and ascending; rows in the order of their first example.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms = 0  # bit r is set where a row with room for exactly r tokens exists
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = max_length, len(rows)
            rows.append([])
        rows[row].append(index)
        left = room - length
        if left:
            by_room[left].append(row)
            rooms |= 1 << left
    return sorted(sorted(row) for row in rows)


def pack_examples(dataset: datasets.Dataset, max_length: int) -> tuple[datasets.Dataset, PackingReport]:
    """Pack tokenised examples into rows of at most ``max_length`` tokens; no example is split.

    Args:
        dataset: ``input_ids`` and ``labels``, as `tokenize_examples` gives.
        max_length: Tokens a row can hold.

    Returns:
        A data set with ``input_ids``, ``labels`` and ``position_ids`` (lists of equal length), and the
        report. Positions restart at 0 at each example, whose first label is -100: the token before it
        belongs to another example and must not predict it.

    Raises:
        DataError: The columns are missing, there is no example, or one is empty or too long.
    """
    missing = {"input_ids", "labels"} - set(dataset.column_names)
    if missing:
        raise DataError(
            f"packing needs the column {', '.join(sorted(missing))}; call tokenize_examples first"
        )
    if "position_ids" in dataset.column_names:
        raise DataError("the data set has position_ids: it is packed already; pack the unpacked one")
    if len(dataset) == 0:
        raise DataError("there is no example to pack")
    table = dataset.select_columns(["input_ids", "labels"]).with_format("arrow")[:]
    tokens, lengths = _flatten(table["input_ids"])
    labels, label_lengths = _flatten(table["labels"])
    _check_lengths(lengths, label_lengths, max_length)

    starts = np.cumsum(lengths) - lengths
    labels[starts] = IGNORE_INDEX
    rows = best_fit(lengths.tolist(), max_length)
    chunks = [
        _rows_table(rows[first : first + _ROWS_PER_CHUNK], tokens, labels, starts, lengths)
        for first in range(0, len(rows), _ROWS_PER_CHUNK)
    ]
    report = PackingReport(
        examples=len(lengths),
        rows=len(rows),
        tokens=int(lengths.sum()),
        max_length=max_length,
        padded_width=int(lengths.max()) * len(lengths),
    )
    return datasets.Dataset(pa.concat_tables(chunks)), report


def _flatten(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return all values of a column of lists in a row, and the length of each list."""
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(values).astype(np.int32), np.concatenate(lengths).astype(np.int64)


def _check_lengths(lengths: np.ndarray, label_lengths: np.ndarray, max_length: int) -> None:
    unequal = np.flatnonzero(lengths != label_lengths)
    if unequal.size:
        first = int(unequal[0])
        raise DataError(
            f"{unequal.size} examples have more or fewer labels than input_ids; example {first + 1} has "
            f"{lengths[first]} and {label_lengths[first]}"
        )
    wrong = np.flatnonzero((lengths > max_length) | (lengths == 0))
    if wrong.size:
        first = int(wrong[0])
        raise DataError(
            f"{wrong.size} of {lengths.size} examples are empty or longer than max_length={max_length}, and "
            f"none is split; example {first + 1} has {lengths[first]} tokens: tokenise with the same max_length"
        )


def _rows_table(
    rows: Sequence[Sequence[int]],
    tokens: np.ndarray,
    labels: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
) -> pa.Table:
    examples = np.fromiter((index for row in rows for index in row), dtype=np.int64)
    sizes = lengths[examples]
    position = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    gather = np.repeat(starts[examples], sizes) + position
    widths = [int(lengths[list(row)].sum()) for row in rows]
    offsets = pa.array(np.concatenate([[0], np.cumsum(widths)]).astype(np.int32))

    def as_lists(values: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.int32)))

    return pa.table(
        {
            "input_ids": as_lists(tokens[gather]),
            "labels": as_lists(labels[gather]),
            "position_ids": as_lists(position),
        }
    )
