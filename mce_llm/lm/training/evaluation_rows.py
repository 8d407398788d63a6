"""Evaluation over several processes counts every row once, though accelerate repeats rows to make the last batch even.

A repeated row gets its labels masked before the forward. Which rows those are depends on the loader: map-style data and
data that the first process deals out (`dispatch_batches`) come with the number of rows that are left for the last
round; a stream that every process reads for itself has no such number, so its rows are numbered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, IterableDatasetShard
from torch import Tensor
from torch.utils.data import IterableDataset

from mce_llm.errors import LossInputError
from mce_llm.lm.training.row_ids import NumberedRow

ROW_LENGTHS = "row_lengths"
_LABELS = ("labels", "shift_labels")


class NumberedStream(IterableDataset):
    """A stream whose rows come with their number in it.

    Args:
        rows: The stream; attributes that accelerate looks for are its own.
    """

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[NumberedRow]:
        return (NumberedRow(index, row) for index, row in enumerate(self._rows))

    def __len__(self) -> int:
        return len(self._rows)  # a TypeError where the stream has none, as of the stream itself

    def __getattr__(self, name: str) -> Any:
        if name == "_rows":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self._rows, name)


@dataclass
class EvaluationCollator:
    """A collator that knows its rows: masks labels of repeated ones, or tells how long each row is where they are joined.

    Attributes:
        collate: The collator of the rows themselves.
        share: (first, width), the places of this process among the rows that all processes take from a stream at a
            time; None where the rows are not numbered.
    """

    collate: Callable[[list[Any]], Any]
    share: tuple[int, int] | None = None

    def __call__(self, rows: list[Any]) -> Any:
        """Collate the rows; batches that are no mapping pass unchanged."""
        plain = [row.row if isinstance(row, NumberedRow) else row for row in rows]
        batch = self.collate(plain)
        if not hasattr(batch, "keys"):
            return batch
        joined = any(len(batch[name]) != len(rows) for name in _label_names(batch))
        lengths = _lengths(plain) if joined else None
        if self.share is not None:
            _refuse_unknown_layout(batch, len(rows), lengths)
            first, width = self.share
            # A row that fills up the last round comes from the first one, and has another place there.
            own = sum(row.index % width == first + place for place, row in enumerate(rows))
            return {**batch, **_masked(batch, own, len(rows), lengths)}
        if joined:
            batch[ROW_LENGTHS] = torch.full((len(rows),), -1) if lengths is None else torch.tensor(lengths)
        return batch


def number_stream(loader: Any, collator: EvaluationCollator) -> None:
    """Have the rows of a stream numbered that every process reads for itself; other loaders are left alone.

    Args:
        loader: As accelerate has prepared it.
        collator: The one that it collates with.
    """
    shard = getattr(loader, "dataset", None)
    if not isinstance(shard, IterableDatasetShard) or isinstance(shard.dataset, NumberedStream):
        return
    size = shard.batch_size // shard.num_processes if shard.split_batches else shard.batch_size
    collator.share = (shard.process_index * size, shard.num_processes * size)
    shard.dataset = NumberedStream(shard.dataset)


def without_repeated(inputs: Any, accelerator: Accelerator) -> Any:
    """A batch of an evaluation, with the labels of rows masked that are there to make the last batch even.

    Args:
        inputs: The batch; the lengths of its rows are taken out of it.
        accelerator: Whose loader is being iterated.

    Raises:
        LossInputError: The collator joins rows in a way that does not tell where each of them is.
    """
    lengths = inputs.pop(ROW_LENGTHS, None)
    state = accelerator.gradient_state
    names = _label_names(inputs)
    if accelerator.num_processes == 1 or not names or not state.end_of_dataloader or state.remainder <= 0:
        return inputs
    if not len(inputs[names[0]]):
        # The first process had fewer rows to deal out than half the processes, and no row is left to repeat here.
        row = _one_row(inputs)
        return {**row, **{name: torch.full_like(row[name], -100) for name in names}}
    # What the first process deals out are rows of the batch, whatever was joined in them.
    joined = lengths is not None and not isinstance(state.active_dataloader, DataLoaderDispatcher)
    count = len(lengths) if joined else len(inputs[names[0]])
    known = lengths.tolist() if joined and bool((lengths >= 0).all()) else None
    if count and state.remainder % count:  # the same on all ranks, so that all raise
        _refuse_unknown_layout(inputs, count, known)
    return {**inputs, **_masked(inputs, state.remainder - accelerator.process_index * count, count, known)}


def _masked(batch: Any, own: int, count: int, lengths: list[int] | None) -> dict[str, Tensor]:
    """The labels without those of the rows from the `own`-th on, of `count` rows that are stacked or joined."""
    result = {}
    for name in _label_names(batch) if own < count else ():
        result[name] = labels = batch[name].clone()
        if own <= 0:
            labels.fill_(-100)
        elif lengths is None:
            labels[own:] = -100
        else:
            labels[:, sum(lengths[:own]) :] = -100
    return result


def _refuse_unknown_layout(batch: Any, count: int, lengths: list[int] | None) -> None:
    """Raise if the labels of a batch are neither its rows stacked nor, with lengths, its rows laid end to end."""
    for name in _label_names(batch):
        labels = batch[name]
        stacked = lengths is None and len(labels) == count
        if not stacked and (lengths is None or len(labels) != 1 or sum(lengths) > labels.shape[1]):
            raise LossInputError(
                f"evaluation in several processes repeats rows, so that every process has as many, and the collator made "
                f"{name} of shape {tuple(labels.shape)} of {count} rows, which do not tell where the repeated ones are; "
                "use a collator that stacks its rows or lays them end to end, or evaluate in one process"
            )


def _one_row(batch: Any) -> dict[str, Any]:
    """A row of ones in place of none: models do not take an empty batch, and every rank has to make the same calls."""
    return {
        name: value.new_ones(1, *value.shape[1:]) if isinstance(value, Tensor) and not len(value) else value
        for name, value in batch.items()
    }


def _label_names(batch: Any) -> list[str]:
    return [name for name in _LABELS if isinstance(batch.get(name), Tensor)]


def _lengths(rows: list[Any]) -> list[int] | None:
    """How many tokens each row has, where they say so."""
    if all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        return [len(row["input_ids"]) for row in rows]
    return None
