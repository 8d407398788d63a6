"""The key-value cache of a batch whose rows come and go: each row is right-aligned, new rows take the place of old ones.

A row of n tokens fills the last n of the `end` columns in use; what stands left of it is masked. So rows of different
lengths share one batch, a new row needs no copy of the others, and the next token of every row goes to column `end`.

Shapes: B rows, H key-value heads, C columns of a buffer, D the width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_SPARE = 64  # columns that a buffer grows by at least


class _Layer(DynamicLayer):
    """One layer's keys and values in buffers that are written in place, rather than joined anew for each token."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.buffers: list[torch.Tensor] = []
        self.end = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a token's states to every row."""
        new = key_states.shape[-2]
        self.reserve(self.end + new)
        for buffer_BHCD, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer_BHCD[:, :, self.end : self.end + new] = states
        self.end += new
        return self.show()

    def show(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Make what the model sees out of the columns in use."""
        self.keys, self.values = (buffer_BHCD[:, :, : self.end] for buffer_BHCD in self.buffers)
        return self.keys, self.values

    def allocate(self, rows: int, like: Sequence[torch.Tensor], columns: int) -> None:
        """Make empty buffers, of zeros: what is masked is still multiplied by 0, which must not meet a NaN."""
        self.buffers = [states.new_zeros(rows, states.shape[1], columns, states.shape[3]) for states in like]
        self.dtype, self.device = like[0].dtype, like[0].device
        self.is_initialized = True
        self.show()

    def reserve(self, columns: int) -> None:
        """Have room for so many columns."""
        have = self.buffers[0].shape[2]
        if columns <= have:
            return
        room = columns + max(_SPARE, have // 4)
        for place, old_BHCD in enumerate(self.buffers):
            grown_BHCD = old_BHCD.new_zeros(*old_BHCD.shape[:2], room, old_BHCD.shape[3])
            grown_BHCD[:, :, : self.end] = old_BHCD[:, :, : self.end]
            self.buffers[place] = grown_BHCD

    def shift(self, columns: int) -> None:
        """Move everything right, or left where negative; what would leave on the left is dropped."""
        self.reserve(self.end + columns)
        for buffer_BHCD in self.buffers:
            moved_BHCD = buffer_BHCD[:, :, max(0, -columns) : self.end].clone()
            buffer_BHCD[:, :, max(0, columns) : self.end + columns] = moved_BHCD
        self.end += columns

    def put(self, rows: Sequence[int], lengths: Sequence[int], states: Sequence[torch.Tensor]) -> None:
        """Write new rows, whose states start at their column 0, so that they end at column `end`."""
        for buffer_BHCD, states_NHLD in zip(self.buffers, states, strict=True):
            for source, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                buffer_BHCD[row, :, self.end - length : self.end] = states_NHLD[source, :, :length]

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all but some rows."""
        self.buffers = [buffer_BHCD[rows] for buffer_BHCD in self.buffers]


class KeyValueRows:
    """The cache of `rows` rows, some of them empty, and the mask that tells their tokens from what is left of them."""

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows
        self.device = device
        self.lengths = [0] * rows
        self.cache = Cache(layer_class_to_replicate=_Layer)
        self._layers: list[_Layer] = []
        self.end = 0

    @property
    def mask_BC(self) -> torch.Tensor:
        """1 on the tokens of each row and on the column of the token to come, int64."""
        starts_B1 = torch.tensor([[self.end - length] for length in self.lengths], device=self.device)
        return (torch.arange(self.end + 1, device=self.device) >= starts_B1).long()

    @torch.inference_mode()
    def put(self, rows: Sequence[int], lengths: Sequence[int], prompts: DynamicCache) -> None:
        """Let new prompts take the place of empty rows.

        Args:
            rows: Which rows.
            lengths: Tokens of each prompt.
            prompts: Their states, in order, each starting at column 0.
        """
        read: list[Any] = prompts.layers
        if not self._layers:
            self._layers = [_Layer() for _ in read]
            self.cache.layers = list(self._layers)
            for layer, new in zip(self._layers, read, strict=True):
                layer.allocate(self.rows, (new.keys, new.values), max(lengths) + _SPARE)
        if (more := max(lengths) - self.end) > 0:
            self._shift(more)
        for layer, new in zip(self._layers, read, strict=True):
            layer.put(rows, lengths, (new.keys, new.values))
            layer.show()
        for row, length in zip(rows, lengths, strict=True):
            self.lengths[row] = length

    def advance(self, active: Sequence[int]) -> None:
        """Count the token that the model has just appended to the active rows; the others become empty."""
        self.end += 1
        lengths = [0] * self.rows
        for row in active:
            lengths[row] = self.lengths[row] + 1
        self.lengths = lengths

    def tidy(self, active: Sequence[int]) -> None:
        """Drop columns that no active row uses any more, once they are a quarter of all: each copy is paid for before."""
        unused = self.end - max((self.lengths[row] for row in active), default=0)
        if unused * 4 > self.end:
            self._shift(-unused)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Drop all but some rows, which are then numbered in this order."""
        places = torch.tensor(list(rows), device=self.device)
        for layer in self._layers:
            layer.keep(places)
            layer.show()
        self.lengths = [self.lengths[row] for row in rows]
        self.rows = len(rows)

    @torch.inference_mode()
    def _shift(self, columns: int) -> None:
        for layer in self._layers:
            layer.shift(columns)
            layer.show()
        self.end += columns
