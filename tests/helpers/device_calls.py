"""What a piece of code asks of a GPU, counted without one: on fake CUDA tensors, which have shapes and no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They allocate or look at memory that is there, and run nothing.
_NO_KERNEL = {"empty", "new_empty", "empty_like", "empty_strided", "detach", "alias", "lift_fresh", "device"}


class DeviceCalls(TorchDispatchMode):
    """Counts from when it is entered.

    Attributes:
        launches: Names of the operations that run on the device.
        waits: Names of those that make the host wait: a value is read, or copied between host and device.
        bytes: Read and written by the launches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self.waits: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation; a value that is read is 0."""
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name == "_local_scalar_dense" and args[0].device.type == "cuda":
            self.waits.append(name)
            return args[0].dtype.is_floating_point and 0.0
        result = func(*args, **kwargs)
        read, made = (
            [t for t in tree_leaves(x) if isinstance(t, torch.Tensor)] for x in ((args, kwargs), result)
        )
        devices = {t.device.type for t in (*read, *made)}
        if len(devices) > 1 and name in ("_to_copy", "copy_"):
            self.waits.append(name)
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if "cuda" in devices and not view and name not in _NO_KERNEL:
            self.launches.append(name)
            self.bytes += sum(t.numel() * t.element_size() for t in (*read, *made))
        return result


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """Tensors that are made in the block are fake; the device is one of CUDA, whether there is one or not."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda")
