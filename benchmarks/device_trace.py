"""What a program would do on a GPU, seen on tensors without memory: launches, host waits, peak.

Inside `fake_cuda` code runs on CUDA tensors of any size on a machine without a GPU, and `DeviceTrace` sees every
operation that reaches the device: its bytes and arithmetic (`op_costs`), the place in our code that asked for it, what is held, and
where the host would wait for the device. One operation counts as one launch, though a library may start several
kernels for it; what libraries allocate for themselves is not seen. Numbers that the host reads are those of a rehearsal
(`rehearsal`); gradients need `fake_backward`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from code_places import NOWHERE, Place, Stack
from op_costs import Cost, kernel_cost, operation_cost, starts_kernel, tensors_of
from rehearsal import Answers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that look at a result on the host before they return, and how often.
_WAITS_INSIDE = {
    "_linalg_check_errors": 1,
    "_linalg_eigh": 1,
    "_linalg_svd": 1,
    "bincount": 2,
    "masked_select": 1,
    "nonzero": 1,
}
_CAPABILITY = (9, 0)  # H100 and its kin
# One for all traces: what a program keeps on the device from one call to the next belongs to it.
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True)
class Launch:
    """One kernel: its operation, cost, place, and the shape of its first result."""

    name: str
    cost: Cost
    place: Place
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Wait:
    """The host waits for the device."""

    reason: str
    place: Place


class _Memory:
    """Storages that came into being under the trace and are still alive."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[StorageWeakRef, int, Place]] = {}
        self.peak, self.place = 0, NOWHERE
        self.at_peak: list[tuple[int, Place]] = []

    def see(self, tensors: Sequence[Tensor], place: Place, *, fresh: bool) -> None:
        """Take in tensors; those that were there before the trace began count as nothing."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            held = self._held.get(storage._cdata)
            if held is None or held[0].expired():
                size = storage.nbytes() if fresh else 0
                self._held[storage._cdata] = (StorageWeakRef(storage), size, place)
        if not fresh:
            return
        for key in [key for key, (reference, _, _) in self._held.items() if reference.expired()]:
            del self._held[key]
        now = sum(size for _, size, _ in self._held.values())
        if now > self.peak:
            self.peak, self.place = now, place
            self.at_peak = [(size, where) for _, size, where in self._held.values() if size]


class DeviceTrace(TorchDispatchMode):
    """Everything that reaches the device while it is in force, which it is as a context inside `fake_cuda`.

    Args:
        root: The folder of our code.
        answers: From a rehearsal; by default everything that the host reads is zero.
        device_type: The device.

    Attributes:
        launches: Kernels in order.
        waits: Where the host waited for the device, in order.
    """

    def __init__(self, root: Path, answers: Answers | None = None, device_type: str = "cuda") -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.waits: list[Wait] = []
        self._memory = _Memory()
        self._stack, self._answers, self._device_type = Stack(root), answers or Answers(), device_type
        self._patches = ExitStack()

    def __enter__(self) -> DeviceTrace:
        def tolist(tensor: Tensor) -> Any:  # one wait, however many numbers there are
            return self.read(tensor, _zeros(tensor.shape, _zero(tensor)))

        def run(kernel: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any) -> None:
            self.kernel(kernel.fn.__name__, args, kwargs)

        self._patches.enter_context(patch.object(FakeTensor, "tolist", tolist))
        if find_spec("triton") is not None:
            compiled = import_module("triton.runtime.jit").JITFunction
            self._patches.enter_context(patch.object(compiled, "run", run))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._patches.close()

    @property
    def peak(self) -> int:
        """The most bytes that were held at once, beyond what was there before."""
        return self._memory.peak

    @property
    def peak_place(self) -> Place:
        """Where that was reached."""
        return self._memory.place

    def held_at_peak(self, most: int = 5) -> list[tuple[int, Place]]:
        """The largest of what was held then: bytes, and where they were asked for."""
        return sorted(self._memory.at_peak, key=lambda held: -held[0])[:most]

    def kernel(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Count a launch that PyTorch does not see, such as that of a Triton kernel."""
        place = self._stack.place()
        self.launches.append(Launch(name, kernel_cost(name, args, kwargs), place, ()))

    def read(self, tensor: Tensor, otherwise: Any) -> Any:
        """Answer the host, which waits where the tensor is on the device."""
        place = self._stack.place()
        if self._on_device([tensor]):
            self.waits.append(Wait("read", place))
        return self._answers.answer(place, otherwise)

    def _on_device(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor for tensor in tensors if tensor.device.type == self._device_type]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions about a tensor
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        inputs = tensors_of(args, kwargs)
        if self._is_of_host(inputs, kwargs):
            with unset_fake_temporarily():  # constants are computed for real
                return func(*args, **kwargs)
        if name == "_local_scalar_dense":
            return self.read(args[0], _zero(args[0]))
        place = self._stack.place()
        self._memory.see(self._on_device(inputs), place, fresh=False)
        if name == "equal":
            return self.read(args[0], True)
        if name in ("index", "index_put_"):
            ids = [found for index in args[1] for found in self._as_ids(index, args[0], place)]
            args = (args[0], ids, *args[2:])
        out = _run(func, name, args, kwargs)
        results = tensors_of(out)
        self._memory.see(self._on_device(results), place, fresh=True)
        if not self._on_device([*inputs, *results]):
            return out
        for _ in range(_WAITS_INSIDE.get(name, 0)):
            self.waits.append(Wait(name.strip("_"), place))
        asynchronous = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if name in ("_to_copy", "copy_") and not asynchronous:
            self._see_copy(inputs[-1], results[0], place)
        if starts_kernel(func, out):
            cost = operation_cost(func, args, kwargs, out)
            self.launches.append(Launch(name, cost, place, tuple(results[0].shape)))
        return out

    def _is_of_host(self, inputs: Sequence[Tensor], kwargs: Mapping[str, Any]) -> bool:
        """Whether an operation has to do with real tensors in the host's memory alone."""
        if any(isinstance(tensor, FakeTensor) for tensor in inputs):
            return False
        return torch.device(kwargs.get("device") or "cpu").type == "cpu"

    def _see_copy(self, source: Tensor, target: Tensor, place: Place) -> None:
        """Copies between host and device wait, unless they were asked not to."""
        if source.device.type != target.device.type:
            to_device = target.device.type == self._device_type
            self.waits.append(Wait("copy to the device" if to_device else "copy to the host", place))

    def _as_ids(self, index: Any, indexed: Tensor, place: Place) -> list[Any]:
        """An index as the device takes it: a mask is turned into positions, and ids on the host are copied."""
        if index is None or not self._on_device([indexed]):
            return [index]
        if not self._on_device([index]):
            self.waits.append(Wait("copy to the device", place))
        if index.dtype not in (torch.bool, torch.uint8):
            return [index]
        self.waits.append(Wait("mask", place))
        return [index.new_empty(index.numel(), dtype=torch.int64) for _ in range(index.ndim)]


def _zero(tensor: Tensor) -> bool | float | int:
    """Python's zero of a tensor's kind."""
    if tensor.dtype == torch.bool:
        return False
    return 0.0 if tensor.is_floating_point() else 0


def _zeros(shape: Sequence[int], zero: object) -> Any:
    """Nested lists, as `tolist` gives them."""
    return [_zeros(shape[1:], zero) for _ in range(shape[0])] if shape else zero


def _run(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The operation on fake tensors; where its size depends on numbers, the largest that it may have."""
    if not isinstance(args[0] if args else None, FakeTensor):
        return func(*args, **kwargs)
    if name == "nonzero":
        return args[0].new_empty((args[0].numel(), max(args[0].ndim, 1)), dtype=torch.int64)
    if name == "masked_select":
        return args[0].new_empty(args[0].numel())
    if name == "bincount":
        least = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
        return args[0].new_empty(least, dtype=torch.int64)
    return func(*args, **kwargs)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Let CUDA tensors be made without memory inside the block; what a driver is asked is answered as for an H100."""
    asked: dict[str, Any] = {
        "get_device_capability": lambda device=None: _CAPABILITY,
        "current_device": lambda: 0,
        "_exchange_device": lambda index: 0,  # `torch.cuda.device` and `device_of`
        "_maybe_exchange_device": lambda index: 0,
    }
    with _FAKE, patch.multiple(torch.cuda, **asked):
        yield
