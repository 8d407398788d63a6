"""A list of many small Python objects as one block of bytes, which worker processes share instead of copying."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar, overload

import numpy as np

_Item = TypeVar("_Item")


class PackedList(Sequence[_Item], Generic[_Item]):
    """A read-only list whose items are unpickled when they are asked for.

    A forked worker that only reads a Python object writes to its reference count, and so comes to own a copy of the
    page: with the annotations of COCO, gigabytes in each worker. Bytes in one array are never written to.

    Args:
        items: What to keep.
    """

    def __init__(self, items: Iterable[_Item]) -> None:
        parts = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(parts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> _Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[_Item]: ...

    def __getitem__(self, index: int | slice) -> _Item | list[_Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        begin = int(self._ends[at - 1]) if at else 0
        item: _Item = pickle.loads(self._bytes[begin : int(self._ends[at])].tobytes())
        return item
