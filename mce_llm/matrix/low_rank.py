"""The logarithm of a low-rank matrix plus a shift, from the small Gram matrix.

With n rows in d > n dimensions, log(sI + XᵀX) costs an n×n eigendecomposition instead of a d×d one.
"""

from typing import Any

import torch
from torch import Tensor

from mce_llm.matrix.checks import positive_number, require_finite, row_matrices
from mce_llm.matrix.first_order import first_derivative
from mce_llm.matrix.logarithm import decompose, log_loewner, matrix_log, symmetrize
from mce_llm.matrix.precision import autocast_off, full_precision_product


class _LowRankLog(torch.autograd.Function):
    """log(sI + XᵀX) = (log s) I + Yᵀ h(κ) Y, with XXᵀ = W diag(κ) Wᵀ, Y = WᵀX, h(κ) = log1p(κ/s)/κ."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, shift: float) -> Tensor:
        kappa, vectors = decompose(full_precision_product(X, X.mT))
        kappa = kappa.clamp(min=0)
        Y = full_precision_product(vectors.mT, X)
        slope = log_loewner(kappa + shift, torch.full_like(kappa, shift))
        low_rank = full_precision_product(Y.mT, slope.unsqueeze(-1) * Y)
        identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
        ctx.save_for_backward(X, kappa, vectors, Y, slope)
        ctx.shift = shift
        return symmetrize(low_rank) + torch.full_like(kappa[..., :1, None], shift).log() * identity

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # ∂/∂X = 2 X D with D = D log[sI + XᵀX](G), G the symmetric part of the incoming gradient. In the basis
        # of Y and its complement (where the eigenvalue is s), WᵀXD = (Γ₂ ∘ Y G Yᵀ) Y + h ∘ (Y G), where
        # Γ₂[i, j] = (Γ[i, j] − h[i])/κ[j] is a second divided difference. Its cancellation is harmless: rows of
        # Y shrink like √κ[j], so the error that 1/κ[j] magnifies enters multiplied by κ[j].
        X, kappa, vectors, Y, slope = ctx.saved_tensors
        with torch.no_grad(), autocast_off(kappa.device.type):
            shifted = kappa + ctx.shift
            first = log_loewner(shifted.unsqueeze(-1), shifted.unsqueeze(-2))
            floor = (torch.finfo(kappa.dtype).eps ** 2 * kappa.amax(-1, keepdim=True)).unsqueeze(-2)
            column = kappa.unsqueeze(-2)
            positive = column > floor
            second = torch.where(
                positive, (first - slope.unsqueeze(-1)) / torch.where(positive, column, 1), 0
            )
            YG = full_precision_product(Y, symmetrize(grads[0]))
            inner = full_precision_product(second * full_precision_product(YG, Y.mT), Y)
            gradient = 2 * full_precision_product(vectors, inner + slope.unsqueeze(-1) * YG)
        return first_derivative(gradient, X, grads[0]), None


def low_rank_log(X: Tensor, shift: float, *, validate: bool = True) -> Tensor:
    """log(sI + XᵀX) for rows X, through the n×n Gram matrix when n < d, with exact gradients.

    Differentiable once in X, at clusters and rank deficiency too; the shift is a constant. Refused: fewer than
    two dimensions or an empty last dimension (`MatrixShapeError`), any dtype but float32 and float64
    (`MatrixDtypeError`), a shift that is not positive (`MatrixInputError`), and, with `validate`, entries that
    are not finite (`NotFiniteError`).

    Args:
        X: (..., n, d) rows, float32 or float64. Scale them first: XᵀX is a sum, not a mean.
        shift: s > 0, the smallest eigenvalue that the matrix can have.
        validate: Check the values of X, which makes the host wait for the device.

    Returns:
        (..., d, d), of X's dtype, symmetric.
    """
    X = row_matrices(X, "X")
    shift = positive_number(shift, "shift")
    if validate:
        require_finite(X, "X")
    if X.shape[-2] < X.shape[-1]:
        return _LowRankLog.apply(X, shift)
    with autocast_off(X.device.type):
        identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
        return matrix_log(symmetrize(full_precision_product(X.mT, X)) + shift * identity, validate=False)
