"""Products of 16-bit matrices that are given out in float32, as tensor cores sum them up, where torch has them."""

from __future__ import annotations

import torch
from torch import Tensor

# Before, `addmm` with another output dtype wanted the sums in the dtype of the factors
# (https://github.com/pytorch/pytorch/pull/167931).
_ADDS_IN_FLOAT32 = torch.__version__ >= "2.10"
# Of a float32 copy of float16 factors: 64 MiB.
_ELEMENTS_AT_A_TIME = 2**24


def has_float32_products(tensor: Tensor) -> bool:
    """Whether the products of this module are there for matrices of this tensor's dtype and device.

    CUDA alone, torch 2.8 or later. Everywhere else a product of 16-bit matrices is rounded to 16 bits.
    """
    return (
        tensor.device.type == "cuda"
        and torch.version.hip is None
        and tensor.dtype in (torch.bfloat16, torch.float16)
        and hasattr(torch.ops.aten.mm, "dtype_out")
    )


def multiply_(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Out = left @ right, where `has_float32_products`.

    Args:
        out: (M, N), float32, overwritten and returned.
        left: (M, K), bfloat16 or float16.
        right: (K, N), of the same dtype.
    """
    return torch.ops.aten.mm.dtype_out(left, right, out.dtype, out=out)


def add_product_(sums: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    """Sums += left @ right, or sums = left @ right where they are fresh.

    Args:
        sums: (M, N), overwritten; of the dtype of the product, or float32.
        left: (M, K).
        right: (K, N), of the same dtype.
        fresh: What is in `sums` is not to be read.
    """
    if sums.dtype == right.dtype:
        sums.addmm_(left, right, beta=0 if fresh else 1)
    elif sums.dtype == torch.float32 and has_float32_products(right):
        if fresh:
            multiply_(sums, left, right)
        elif _ADDS_IN_FLOAT32:
            torch.ops.aten.addmm.dtype_out(sums, left, right, sums.dtype, out=sums)
        else:
            sums += torch.ops.aten.mm.dtype(left, right, sums.dtype)
    elif right.dtype == torch.float16:
        _add_float16_(sums, left, right, fresh=fresh)
    elif fresh:
        sums.copy_(left @ right)
    else:
        sums += left @ right


def _add_float16_(sums: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    """The same of float16 factors, whose product may be larger than float16 holds: in blocks of rows, from float32 copies."""
    wide = right.to(sums.dtype)
    rows = max(1, _ELEMENTS_AT_A_TIME // max(1, left.shape[1]))
    for start in range(0, len(left), rows):
        block = slice(start, start + rows)
        sums[block].addmm_(left[block].to(sums.dtype), wide, beta=0 if fresh else 1)


def gram_(rows: Tensor, out: Tensor) -> Tensor:
    """X Xᵀ of each matrix in float32, every product exact.

    Args:
        rows: X, (B, F, D), bfloat16 or float16.
        out: (B, F, F), float32, overwritten and returned.
    """
    if has_float32_products(rows):
        torch.ops.aten.bmm.dtype_out(rows, rows.mT, out.dtype, out=out)
        return out
    wide = rows.to(out.dtype)
    return torch.bmm(wide, wide.mT, out=out)
