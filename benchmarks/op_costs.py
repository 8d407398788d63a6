"""Bytes and floating-point operations of PyTorch's operations, from shapes alone.

Memory is counted as an ideal kernel would touch it: every input element read once, every output element written once,
an expanded tensor only where it has memory, and of a table that is looked up the rows that are. Operations are counted
for products and factorisations; what is done element by element is bound by memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Cost:
    """What one launch does.

    Attributes:
        read: Bytes read.
        written: Bytes written.
        flops: Floating-point operations, two for a multiply-add.
        dtype: What they are done in; None where there are none.
    """

    read: int
    written: int
    flops: int = 0
    dtype: torch.dtype | None = None


# Costs of kernels that PyTorch does not know: the name of a Triton kernel, or of a custom operator (without its
# namespace), → its cost from the arguments of the launch. Without an entry every tensor argument counts as read once,
# what an operator returns as written once, and no arithmetic is counted.
KERNEL_COSTS: dict[str, Callable[..., Cost]] = {}

_WITHOUT_KERNEL = {
    "_unsafe_view",
    "alias",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "lift",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "set_",
}
_OVERWRITE = {"copy_", "fill_", "normal_", "random_", "uniform_", "bernoulli_", "exponential_", "zero_"}


def starts_kernel(func: Any, out: Any) -> bool:
    """Whether an operation does any work on a device; views and fresh memory do none."""
    if func._schema.name.split("::")[1] in _WITHOUT_KERNEL:
        return False
    returned = func._schema.returns
    if any(r.alias_info is not None and not r.alias_info.is_write for r in returned):
        return False
    return any(tensor.numel() for tensor in tensors_of(out))


def tensors_of(*values: Any) -> list[Tensor]:
    """Every tensor in nested arguments, in order."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def touched_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements of a tensor: those of an expanded dimension count once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return prod(sizes) * tensor.element_size()


def operation_cost(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Cost:
    """The cost of one operation that starts a kernel.

    Args:
        func: The operator overload.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: What it returned.
    """
    name = func._schema.name.split("::")[1]
    if name in KERNEL_COSTS:
        return KERNEL_COSTS[name](*args, **kwargs)
    flops, dtype = _flops(name, args)
    if name in _SPARSE:
        read, written = _SPARSE[name](args, kwargs, out)
        return Cost(read, written, flops, dtype)
    overwritten = {id(tensor) for tensor in tensors_of(kwargs.get("out"))}
    if name in _OVERWRITE or (name in ("addmm_", "baddbmm_", "addmv_") and kwargs.get("beta", 1) == 0):
        overwritten.add(id(args[0]))
    inputs = [tensor for tensor in tensors_of(args, kwargs) if id(tensor) not in overwritten]
    return Cost(_distinct(inputs), _distinct(tensors_of(out)), flops, dtype)


def kernel_cost(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Cost:
    """The cost of a launch of a Triton kernel, from `KERNEL_COSTS` or from its tensors."""
    if name in KERNEL_COSTS:
        return KERNEL_COSTS[name](*args, **kwargs)
    return Cost(_distinct(tensors_of(args, kwargs)), 0)


def _distinct(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; one that stands there twice, or beside its own transpose, counts once."""
    found = {}
    for tensor in tensors:
        count = touched_bytes(tensor)
        found[tensor.untyped_storage()._cdata, tensor.storage_offset(), count] = count
    return sum(found.values())


def _looked_up(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> tuple[int, int]:
    found = touched_bytes(out)
    return found + _distinct(tensors_of(args[1:])), found


def _scattered(name: str) -> Callable[[Sequence[Any], dict[str, Any], Any], tuple[int, int]]:
    """Costs of operations that write where an index says; `name` tells how."""
    in_place, adds = name.endswith("_"), "add" in name

    def cost(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> tuple[int, int]:
        rest = tensors_of(args[1:])
        if name.startswith("scatter"):
            changed = args[2].numel() * out.element_size()
        else:  # (self, dim, index, source) or (self, indices, values, accumulate)
            changed = rest[-1].numel() * out.element_size()
        adding = adds or (name.startswith("index_put") and len(args) > 3 and args[3])
        whole = 0 if in_place else touched_bytes(out)
        return _distinct(rest) + (changed if adding else 0) + whole, changed + whole

    return cost


def _nll_forward(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> tuple[int, int]:
    scores, target = args[0], args[1]
    return touched_bytes(target) + target.numel() * scores.element_size(), _distinct(tensors_of(out))


def _nll_backward(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> tuple[int, int]:
    return touched_bytes(args[0]) + touched_bytes(args[2]), touched_bytes(out)


_SPARSE: dict[str, Callable[[Sequence[Any], dict[str, Any], Any], tuple[int, int]]] = {
    **dict.fromkeys(("gather", "index_select", "index", "embedding", "take"), _looked_up),
    **{
        name: _scattered(name)
        for base in ("scatter", "scatter_add", "index_put", "index_add", "index_copy")
        for name in (base, f"{base}_")
    },
    "nll_loss_forward": _nll_forward,
    "nll_loss_backward": _nll_backward,
}


def _matrix_product(left: Tensor, right: Tensor) -> int:
    """Of (..., m, k) and (..., k, n)."""
    return 2 * left.numel() * right.shape[-1]


def _per_matrix(tensor: Tensor, factor: float) -> int:
    """Factor · n³ for each n×n matrix."""
    size = tensor.shape[-1]
    return round(factor * size**3) * (tensor.numel() // max(size * size, 1))


_FLOPS: dict[str, Callable[[Sequence[Any]], int]] = {
    "mm": lambda a: _matrix_product(a[0], a[1]),
    "bmm": lambda a: _matrix_product(a[0], a[1]),
    "addmm": lambda a: _matrix_product(a[1], a[2]),
    "addbmm": lambda a: _matrix_product(a[1], a[2]),
    "baddbmm": lambda a: _matrix_product(a[1], a[2]),
    "mv": lambda a: 2 * a[0].numel(),
    "addmv": lambda a: 2 * a[1].numel(),
    "dot": lambda a: 2 * a[0].numel(),
    "vdot": lambda a: 2 * a[0].numel(),
    "linalg_cholesky_ex": lambda a: _per_matrix(a[0], 1 / 3),
    "cholesky_inverse": lambda a: _per_matrix(a[0], 2 / 3),
    "linalg_inv_ex": lambda a: _per_matrix(a[0], 2),
    "linalg_solve_triangular": lambda a: a[0].numel() * a[1].shape[-1],
    "_linalg_eigh": lambda a: _per_matrix(a[0], 9),
}


def _flops(name: str, args: Sequence[Any]) -> tuple[int, torch.dtype | None]:
    base = name if name.startswith("_") else name.rstrip("_")
    formula = _FLOPS.get(base)
    if formula is None:
        return 0, None
    # What a product is added to may have more digits than its factors.
    return formula(args), args[1 if base.startswith(("add", "badd")) else 0].dtype
