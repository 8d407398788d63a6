"""Collation: padding tokenised or packed examples into a batch of tensors.

An unpacked batch has an ``attention_mask``. A packed one must not: its ``position_ids`` alone tell
transformers where an example ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mce_llm.data.errors import DataError
from mce_llm.data.prompts import IGNORE_INDEX


@dataclass
class CompletionCollator:
    """Pad examples on the right and stack them.

    Unpacked rows give ``input_ids``, ``attention_mask`` and ``labels``; packed rows (those with
    ``position_ids``) give ``input_ids``, ``position_ids``, ``labels`` and ``use_cache=False``. All tensors
    are int64 of shape (rows, longest row), rounded up to ``pad_to_multiple_of``. Padding has label -100;
    in packed rows it is an example of its own, with positions from 0.

    ``use_cache=False`` is there because transformers looks for packed examples only when there is no
    key-value cache, and most model configurations ask for one: without it the examples of a row would see
    each other.

    Attributes:
        pad_token_id: The id to pad with, or the tokenizer to take it from (its EOS where it has no padding
            token: padding is masked, so the choice does not matter).
        pad_to_multiple_of: Round the length up to a multiple of this, for tensor cores (8 or 64).
        flatten_packed: Lay the packed rows of a batch end to end, as one row of shape (1, total length).
            FlashAttention keeps packed examples apart only in such a batch. `MatrixTrainer` lays them out so
            itself, after it has counted the rows; set it for a training loop of your own.
    """

    pad_token_id: int | PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None
    flatten_packed: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.pad_token_id, PreTrainedTokenizerBase):
            tokenizer = self.pad_token_id
            found = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            if found is None:
                raise DataError(
                    "the tokenizer has neither a padding nor an EOS token; save one that has with save_pretrained, and give it "
                    "as tokenizer_name_or_path (in Python: set tokenizer.pad_token)"
                )
            self.pad_token_id = int(found)
        if self.pad_token_id < 0:
            raise DataError(f"pad_token_id must be a token id, 0 or more, got {self.pad_token_id}")
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise DataError(f"pad_to_multiple_of must be at least 1 or None, got {self.pad_to_multiple_of}")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            rows: Examples with ``input_ids`` and ``labels``, all or none of them with ``position_ids``.

        Returns:
            The keyword arguments of a causal language model's forward pass.

        Raises:
            DataError: There is no row, or packed and unpacked rows are mixed.
        """
        if not rows:
            raise DataError("a batch needs at least one row")
        packed = ["position_ids" in row for row in rows]
        if any(packed) != all(packed):
            raise DataError(
                f"{sum(packed)} of {len(rows)} rows are packed; a batch is all packed or not at all"
            )
        names = ["input_ids", "labels", *(["position_ids"] if packed[0] else [])]
        lists = [{name: list(row[name]) for name in names} for row in rows]
        if packed[0] and self.flatten_packed:
            lists = [{name: [value for row in lists for value in row[name]] for name in names}]
        width = max(len(row["input_ids"]) for row in lists)
        multiple = self.pad_to_multiple_of or 1
        width = -(-width // multiple) * multiple
        batch: dict[str, Any] = {
            "input_ids": _stack([_padded(row["input_ids"], width, self.pad_token_id) for row in lists]),
            "labels": _stack([_padded(row["labels"], width, IGNORE_INDEX) for row in lists]),
        }
        if packed[0]:
            positions = [row["position_ids"] for row in lists]
            batch["position_ids"] = _stack([[*row, *range(width - len(row))] for row in positions])
            batch["use_cache"] = False
        else:
            lengths = torch.tensor([len(row["input_ids"]) for row in lists])
            batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        return batch


def _padded(values: list[int], width: int, filler: Any) -> list[int]:
    return values + [filler] * (width - len(values))


def _stack(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)
