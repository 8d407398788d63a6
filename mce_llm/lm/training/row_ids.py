"""Batches with the indices of their rows in the training data, so that a message can name them.

The indices are a tensor of the batch, so samplers, worker processes, skipped batches and sharding do not affect them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

ROW_IDS = "row_ids"


@dataclass(frozen=True)
class NumberedRow:
    """One row and its index in the data set."""

    index: int
    row: Any


class NumberedRows(Dataset):
    """A data set whose rows come with their index.

    Args:
        rows: A data set with `__len__` and `__getitem__`.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> NumberedRow:
        return NumberedRow(int(index), self.rows[index])

    def __getitems__(self, indices: list[int]) -> list[NumberedRow]:
        """Rows fetched together, where the data set can do that (`datasets` can, and is much faster so)."""
        if hasattr(self.rows, "__getitems__"):
            rows = self.rows.__getitems__(indices)
        else:
            rows = [self.rows[index] for index in indices]
        return [NumberedRow(int(index), row) for index, row in zip(indices, rows, strict=True)]


@dataclass(frozen=True)
class NumberedCollator:
    """A collator that puts `row_ids`, (B,) int64, into its batch.

    Attributes:
        collate: The collator of the rows themselves; batches that are no mapping pass unchanged.
    """

    collate: Callable[[list[Any]], Any]

    def __call__(self, numbered: list[NumberedRow]) -> Any:
        """Collate the rows and add their ids."""
        batch = self.collate([item.row for item in numbered])
        if hasattr(batch, "keys"):
            batch[ROW_IDS] = torch.tensor([item.index for item in numbered], dtype=torch.long)
        return batch
