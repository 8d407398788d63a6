"""Token geometries that are read off a table once for as long as its weights stand still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry

_Key = tuple[object, ...]


@dataclass(frozen=True)
class _Known:
    """What was read, and what it was read off."""

    key: _Key
    memory: StorageWeakRef  # that of the table: an address alone may be another table's by now
    token_mask: Tensor | None
    geometry: TokenGeometry


class GeometryCache:
    """Remembers what was read off a table: mean, lengths and directions, (2V + d numbers), and not the table itself.

    It is for whoever knows when weights change, such as the loop around an optimizer: it remembers within `steady` blocks
    alone, and what was read before until `clear` is called. Changes that torch counts (in-place operations on the weight or
    the mask) and other memory are noticed in any case; writes through `weight.data`, as engines make them, are not. A
    table that is made anew for each call is read in each call.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[bool, bool], _Known] = {}
        self._steady = False

    def clear(self) -> None:
        """Forget everything: the weights may have changed."""
        self._kept.clear()

    @contextmanager
    def steady(self, *, fresh: bool = False) -> Iterator[None]:
        """Weights stand still for the length of a block.

        Args:
            fresh: Nobody knows what they were before, or will be after it.
        """
        if fresh:
            self.clear()
        self._steady = True
        try:
            yield
        finally:
            self._steady = False
            if fresh:
                self.clear()

    def geometry(
        self, table_VD: Tensor, config: MatrixLossConfig, token_mask: Tensor | None
    ) -> TokenGeometry:
        """The geometry of a table, remembered or read now.

        Args:
            table_VD: (V, d) embedding rows.
            config: `center` and `normalize` are read.
            token_mask: (V,) bool, False for rows that are no tokens; None for all True.

        Raises:
            GeometryError: See `TokenGeometry.from_table`.
        """
        table_VD = table_VD.detach()
        given = [table_VD] if token_mask is None else [table_VD, token_mask]
        if not self._steady or any(
            torch.is_inference(tensor) for tensor in given
        ):  # such tensors count no changes
            return TokenGeometry.from_table(table_VD, config, token_mask)
        kind = (config.center, config.normalize)
        where = (table_VD.data_ptr(), table_VD.shape, table_VD.stride(), table_VD.dtype, table_VD.device)
        key = (*where, *(tensor._version for tensor in given))
        known = self._kept.get(kind)
        if (
            known is not None
            and known.key == key
            and known.token_mask is token_mask
            and not known.memory.expired()
        ):
            return replace(known.geometry, table_VD=table_VD)
        geometry = TokenGeometry.from_table(table_VD, config, token_mask)
        memory = StorageWeakRef(table_VD.untyped_storage())
        self._kept[kind] = _Known(key, memory, token_mask, replace(geometry, table_VD=table_VD.new_empty(0)))
        return geometry
