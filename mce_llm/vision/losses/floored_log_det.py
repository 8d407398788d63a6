"""log det of a matrix that is not symmetric, continued to where it does not exist: eigenvalues have a floor.

log det A = Σ log λ_i has a real value only while no eigenvalue is negative, and near 0 it and its gradient have no
bound. A few eigenvalues of a cross-covariance of teacher and student get there in an unlucky batch, out of hundreds that
do not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mce_llm.matrix.precision import in_float64
from mce_llm.vision.losses.radius import power_bound

# An eigenvalue that is known no better than this (the norm of its row of V⁻¹) is one of a defective matrix, and …
_ILL_CONDITIONED = 1e8
# … moving the matrix by so much, relatively, makes it diagonalisable (Davies, SIAM J. Matrix Anal. Appl. 29, 2007).
_NUDGE = 1e-8


class FlooredLogDet(NamedTuple):
    """The value, its gradient to A (n, n), and how many eigenvalues are below the floor."""

    value: Tensor
    gradient: Tensor
    floored: Tensor


def floored_log_det(matrix: Tensor, floor: float) -> FlooredLogDet:
    """Σ_i f(λ_i) over the eigenvalues λ = x + iy of A, with f(λ) = log |λ| where x >= δ, and its tangent in x elsewhere.

    f(λ) = ½ log(δ² + y²) + (x − δ) δ/(δ² + y²) for x < δ: continuous with its first derivatives, finite everywhere,
    increasing in x, with a slope of 1/δ at most. Where all eigenvalues have x >= δ it is log det A, and computed as that, by LU,
    where a bound on the spectral radius of a Cayley transform (x > δ ⇔ |(λ−δ−c)/(λ−δ+c)| < 1) certifies it. Eigenvectors are
    computed where it does not, in float64 and on the CPU, as they are no work for a GPU: a second or so for n = 512.

    The symmetric part of A would be cheaper to work with, and is no substitute: behind a predictor the cross-covariance is
    so far from normal that its symmetric part is indefinite in batches whose eigenvalues all lie near μ.

    Args:
        matrix: A, (n, n), real.
        floor: δ > 0.

    Returns:
        In the dtype of A; NaN where entries of A are not finite. The host waits for the device.
    """
    if _lies_right_of(matrix, floor):
        _, log_det = torch.linalg.slogdet(matrix)
        return FlooredLogDet(log_det, torch.linalg.inv_ex(matrix).inverse.T, torch.zeros_like(log_det))
    if not bool(torch.isfinite(matrix).all()):
        nan = matrix.new_full((), torch.nan)
        return FlooredLogDet(nan, torch.full_like(matrix, torch.nan), torch.zeros_like(nan))
    eigenvalues, vectors, inverse = _diagonalised(in_float64(matrix).cpu())
    x, y = eigenvalues.real, eigenvalues.imag
    low = x < floor
    inside = x.clamp(min=floor)
    square = inside.square() + y.square()
    beyond = torch.where(low, x - floor, 0.0)
    value = (square.log() / 2 + beyond * inside / square).sum()
    # df = f_x dx + f_y dy = Re((f_x − i f_y) dλ), and dλ_i = (V⁻¹ dA V)_ii; without a floor that is Re(dλ/λ).
    slope = torch.complex(inside / square, -y / square + 2 * beyond * inside * y / square.square())
    gradient = ((vectors * slope) @ inverse).real.T
    return FlooredLogDet(*(part.to(matrix) for part in (value, gradient, low.sum())))


def _lies_right_of(matrix: Tensor, bound: float) -> bool:
    """Whether it is certain that all eigenvalues have real parts above the bound; eigenvalues near it may not be settled."""
    middle = float(matrix.diagonal().mean())
    deviation = matrix.clone()
    deviation.diagonal().sub_(middle)
    if (
        float(torch.linalg.matrix_norm(deviation)) < middle - bound
    ):  # a circle around the middle, as for μ = 1
        return True
    # The geometric mean of the extreme eigenvalues keeps all of them farthest inside the unit circle; near the smaller
    # ones is the mean of the diagonal, and above the largest the norm.
    centre = math.sqrt(abs(middle) * float(torch.linalg.matrix_norm(matrix)))
    if not 0 < centre < math.inf:
        return False
    right = matrix.clone()
    right.diagonal().add_(centre - bound)
    inverse, info = torch.linalg.inv_ex(right)
    if int(info):
        return False
    # (B − c)(B + c)⁻¹ = I − 2c (B + c)⁻¹ with B = A − δ.
    transform = inverse.mul_(-2 * centre)
    transform.diagonal().add_(1)
    return power_bound(transform) < 1


def _diagonalised(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, eigenvectors as columns of length 1, and the inverse of their matrix."""
    eigenvalues, vectors = torch.linalg.eig(matrix)
    inverse, info = torch.linalg.inv_ex(vectors)
    if int(info) or not float(torch.linalg.vector_norm(inverse, dim=1).max()) < _ILL_CONDITIONED:
        generator = torch.Generator().manual_seed(0)
        nudge = torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype)
        nudged = matrix + nudge * (_NUDGE * torch.linalg.matrix_norm(matrix) / matrix.shape[0])
        eigenvalues, vectors = torch.linalg.eig(nudged)
        inverse = torch.linalg.inv_ex(vectors).inverse
    return eigenvalues, vectors, inverse
