"""Products at full precision, whatever autocast and TF32 are set to.

A Gram matrix formed in bfloat16 or TF32 is wrong in its third digit, and its small eigenvalues, which the
logarithm weighs most, are then noise (or negative). Nothing here changes a setting for longer than one block.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


def exact_dtype(device: torch.device) -> torch.dtype:
    """The dtype for long sums on a device: float64, or float32 where there is none (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64: on its device, or on the CPU where that has none (MPS, which has no eigenvalues either).

    Args:
        tensor: Of any floating dtype.
    """
    has_none = exact_dtype(tensor.device) != torch.float64
    return (tensor.cpu() if has_none else tensor).double()


@contextmanager
def _ieee_products(device_type: str) -> Iterator[None]:
    """Turn TF32 (CUDA) or bfloat16 (CPU) products of float32 matrices off inside the block."""
    backend: Any = torch.backends.cuda.matmul if device_type == "cuda" else torch.backends.mkldnn
    if device_type == "cpu":
        backend = getattr(backend, "matmul", backend)
    if hasattr(backend, "fp32_precision"):  # torch >= 2.9; reading the older switches may raise there
        before = backend.fp32_precision
        if before in ("ieee", "none"):
            yield
            return
        backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            backend.fp32_precision = before
    else:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextmanager
def autocast_off(device_type: str) -> Iterator[None]:
    """Disable autocast on one device type inside the block."""
    with ExitStack() as stack:
        if torch.amp.is_autocast_available(device_type):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Disable autocast and TF32 on the device of `tensor` inside the block.

    The settings are global to the process (TF32) or to the thread (autocast); both are put back at the end.

    Args:
        tensor: Any tensor on the device in question.
    """
    device_type = tensor.device.type
    with autocast_off(device_type), ExitStack() as stack:
        if device_type in ("cpu", "cuda"):
            stack.enter_context(_ieee_products(device_type))
        yield


class _FullPrecisionProduct(torch.autograd.Function):
    """A @ B whose backward pass, too, ignores autocast and TF32, wherever `backward` is called."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        with full_precision(left):
            return left @ right

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        need_left, need_right = ctx.needs_input_grad
        grad_left = full_precision_product(grads[0], right.mT).sum_to_size(left.shape) if need_left else None
        grad_right = (
            full_precision_product(left.mT, grads[0]).sum_to_size(right.shape) if need_right else None
        )
        return grad_left, grad_right


def full_precision_product(left: Tensor, right: Tensor) -> Tensor:
    """A @ B with neither autocast nor TF32, in the forward and the backward pass.

    Args:
        left: (..., m, k), float32 or float64.
        right: (..., k, n) of the same dtype; batch dimensions broadcast.

    Returns:
        (..., m, n), differentiable any number of times.
    """
    return _FullPrecisionProduct.apply(left, right)
