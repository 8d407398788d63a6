"""The logarithm of symmetric positive definite matrices, with exact gradients where eigenvalues meet.

Autograd through an eigendecomposition divides by differences of eigenvalues, and is non-finite at the identity
and at clusters. The logarithm itself is smooth there: its derivative is the Daleckii–Krein formula with divided
differences of log (Higham, *Functions of Matrices*, SIAM 2008, theorem 3.11), which this module evaluates.
"""

from typing import Any

import torch
from torch import Tensor

from mce_llm.matrix.checks import (
    require_finite_symmetric,
    require_positive_definite,
    square_matrices,
)
from mce_llm.matrix.first_order import first_derivative
from mce_llm.matrix.precision import autocast_off, full_precision, full_precision_product
from mce_llm.matrix.rational_log import (
    RationalLogError,
    Resolvents,
    by_products,
    resolvents,
    warn_of_fall_back,
)


def symmetrize(A: Tensor) -> Tensor:
    """(A + Aᵀ)/2.

    Args:
        A: (..., d, d).

    Returns:
        (..., d, d).
    """
    return (A + A.mT) / 2


def decompose(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the symmetric part of A, outside the autograd graph.

    Args:
        A: (..., d, d), float32 or float64.

    Returns:
        Eigenvalues (..., d) in ascending order, and eigenvectors (..., d, d) in columns.
    """
    with torch.no_grad(), full_precision(A):
        eigenvalues, eigenvectors = torch.linalg.eigh(symmetrize(A))
    return eigenvalues, eigenvectors


def spectrum_of(A: Tensor) -> Tensor:
    """Eigenvalues of the symmetric part of A alone, outside the autograd graph: a fraction of the work of `decompose`.

    Args:
        A: (..., d, d), float32 or float64.

    Returns:
        (..., d) in ascending order.
    """
    with torch.no_grad(), full_precision(A):
        return torch.linalg.eigvalsh(symmetrize(A))


def from_spectrum(values: Tensor, eigenvectors: Tensor) -> Tensor:
    """U diag(f) Uᵀ, symmetric to the last bit.

    Args:
        values: (..., d), the function's values f at the eigenvalues.
        eigenvectors: (..., d, d), in columns.

    Returns:
        (..., d, d).
    """
    return symmetrize(full_precision_product(eigenvectors * values.unsqueeze(-2), eigenvectors.mT))


def log_loewner(x: Tensor, y: Tensor) -> Tensor:
    """First divided differences of the logarithm: (log x − log y)/(x − y), and 1/x where x = y.

    Evaluated as log1p((hi − lo)/lo)/(hi − lo) with hi = max(x, y) and lo = min(x, y). That is the same number
    as 2·atanh((x − y)/(x + y))/(x − y), accurate to a few units in the last place when x and y nearly agree, and,
    unlike atanh, it does not saturate when one is much larger than the other (in float32, from a ratio of 1e8).

    Args:
        x: Positive numbers, any shape.
        y: Positive numbers that broadcast with x, e.g. `log_loewner(l.unsqueeze(-1), l.unsqueeze(-2))`.

    Returns:
        The divided differences, positive, in the broadcast shape.
    """
    high, low = torch.maximum(x, y), torch.minimum(x, y)
    gap = high - low
    ratio = gap / low
    # It may overflow, and some vectorised log1p (torch 2.6) do so a little below the largest number already.
    huge = ratio > 1e-8 * torch.finfo(ratio.dtype).max
    logs = torch.where(huge, high.log() - low.log(), ratio.log1p())
    return torch.where(gap == 0, high.reciprocal(), logs / gap)


def matrix_log_frechet(eigenvalues: Tensor, eigenvectors: Tensor, direction: Tensor) -> Tensor:
    """D log[Q](P) = U (Γ ∘ (Uᵀ P U)) Uᵀ, the derivative of log at Q = U diag(λ) Uᵀ in the direction P.

    Γ is the Loewner matrix of `log_loewner`. The map P ↦ D log[Q](P) is its own adjoint, so it serves both as
    the directional derivative and as the gradient of ⟨P, log Q⟩ with respect to Q (Daleckii–Krein; Higham,
    *Functions of Matrices*, theorem 3.11).

    Args:
        eigenvalues: (..., d), positive.
        eigenvectors: (..., d, d), orthonormal columns.
        direction: (..., d, d), symmetric; batch dimensions broadcast.

    Returns:
        (..., d, d), symmetric, linear (and differentiable) in `direction`.
    """
    with autocast_off(eigenvalues.device.type):
        rotated = full_precision_product(full_precision_product(eigenvectors.mT, direction), eigenvectors)
        scaled = log_loewner(eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)) * rotated
        return symmetrize(
            full_precision_product(full_precision_product(eigenvectors, scaled), eigenvectors.mT)
        )


class _MatrixLog(torch.autograd.Function):
    """log A from its eigendecomposition, with the Daleckii–Krein derivative."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> Tensor:
        ctx.save_for_backward(A, eigenvalues, eigenvectors)
        return from_spectrum(eigenvalues.log(), eigenvectors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        A, eigenvalues, eigenvectors = ctx.saved_tensors
        with torch.no_grad():
            gradient = matrix_log_frechet(eigenvalues, eigenvectors, symmetrize(grads[0]))
        return first_derivative(gradient, A, grads[0]), None, None


class _RationalLog(torch.autograd.Function):
    """log A from resolvents; the backward pass inverts again, because to keep a dozen inverses costs more memory."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, prepared: Resolvents) -> Tensor:
        ctx.save_for_backward(A)
        ctx.prepared = prepared
        return symmetrize(prepared.sweep()[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (A,) = ctx.saved_tensors
        with torch.no_grad():
            gradient = symmetrize(ctx.prepared.sweep(symmetrize(grads[0]))[1])
        return first_derivative(gradient, A, grads[0]), None


def matrix_log(A: Tensor, *, validate: bool = True, method: str = "auto") -> Tensor:
    """Matrix logarithm log A = U diag(log λ) Uᵀ of symmetric positive definite A, with exact gradients.

    The gradient is exact wherever A is positive definite, at the identity and at clusters of eigenvalues too.
    A is read through its symmetric part, so the gradient is symmetric. It can be differentiated once: a second
    derivative raises RuntimeError. The relative error of the result is about eps·κ(A) / abs(log λ_min) (κ the
    condition number), because an eigenvalue is known only to eps·λ_max.

    With `method="rational"` the eigendecomposition gives way to a sum of a dozen inverses (`rational_log`), whose
    eigenvalues are off by 2e-6 in float32 and 1e-9 in float64 or so, and whose derivative by 1e-5 and 1e-8 at most,
    relative, beside rounding. Where that is not possible, `RationalLogWarning` is given and the eigendecomposition used.

    Refused: fewer than two dimensions, not square, or d = 0 (`MatrixShapeError`); any dtype but float32 and
    float64 (`MatrixDtypeError`); an unknown method (`MatrixInputError`); and, with `validate`, entries that are not
    finite (`NotFiniteError`), asymmetry (`NotSymmetricError`), an eigenvalue below −max(4, d)·eps·λ_max
    (`IndefiniteError`), or one below 4·eps·λ_max (`SingularMatrixError`; add a shift ε·I).

    Args:
        A: (..., d, d), float32 or float64, on any device; the batch may be empty.
        validate: Check the values of A. It makes the host wait for the device; without it, a matrix that is not
            positive definite gives NaN or −∞.
        method: "eigh", "rational", or "auto": rational on CUDA devices for d ≥ 2048 (in float64 on those that are
            fast at it), eigh elsewhere.

    Returns:
        (..., d, d), of A's dtype, symmetric.
    """
    A = square_matrices(A, "A")
    if validate:
        require_finite_symmetric(A, "A")
    failure = None
    if by_products(A, method):
        try:
            return _RationalLog.apply(A, resolvents(symmetrize(A)))
        except RationalLogError as error:
            failure = error
    eigenvalues, eigenvectors = decompose(A)
    if validate:
        require_positive_definite(eigenvalues, "A")
    if failure is not None:
        warn_of_fall_back("matrix_log", failure)
    return _MatrixLog.apply(A, eigenvalues, eigenvectors)
