"""The matrix logarithm and its derivative from inverses and products alone, for devices that are slow at `eigh`.

With log λ ≈ c − Σ_j w_j·s_j/(λ + s_j) (`log_approximation`) and the resolvents R_j = (A + s_j I)⁻¹,

    log A ≈ c·I − Σ_j w_j s_j R_j        D log[A](P) ≈ Σ_j w_j s_j R_j P R_j

so one sweep over a dozen Cholesky factorisations gives value and gradient. All of it is dense linear algebra of order
d³ that runs near the speed of matrix products, where an eigendecomposition spends half its work in products of a matrix
with a vector. In float32 it was also the more accurate of the two: the backward error of a Cholesky factorisation is
relative to the diagonal entries of A (Demmel's bound), that of `eigh` to the largest eigenvalue. Nothing is
differentiated through.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.errors import MceLlmError
from mce_llm.matrix.errors import MatrixInputError
from mce_llm.matrix.log_approximation import ApproximationError, LogApproximation, log_approximation
from mce_llm.matrix.precision import full_precision

METHODS = ("auto", "eigh", "rational")
_SMALLEST_BY_PRODUCTS = 2048
# P100, V100, A100, H100, B200: float64 at half the speed of float32. Others have a thirty-second of it or less, and then
# the sixteen-odd inverses take longer than `eigh`, which needs far less arithmetic.
_FAST_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
# The same of ROCm, whose numbers are others: MI100, MI200 (gfx908, gfx90a), MI300 (gfx942), MI350 (gfx950).
_FAST_FLOAT64_ROCM = ((9, 0), (9, 4), (9, 5))
# Of the slopes, relative; the values are then good to about a tenth of it.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-8}
# An inverse is off by eps·κ, relative, and the condition number used here is an upper bound.
_LARGEST_CONDITION_TIMES_EPS = 1 / 16
_PROBES = 8


class RationalLogError(MceLlmError, ArithmeticError):
    """The logarithm of this matrix cannot be computed from resolvents; an eigendecomposition is needed."""


class RationalLogWarning(UserWarning):
    """The logarithm could not be formed from matrix products and took a much slower eigendecomposition."""


def by_products(A: Tensor, method: str) -> bool:
    """Whether `method` means the rational logarithm for A.

    Args:
        A: (..., d, d).
        method: "eigh", "rational", or "auto": rational on CUDA devices from d = 2048 on, in float64 only where the
            device is fast at it. (On a CPU `eigh` was the faster at every size that was tried.)

    Returns:
        True for the rational logarithm; never for an empty batch.

    Raises:
        MatrixInputError: Another name.
    """
    if method not in METHODS:
        raise MatrixInputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if A.numel() == 0:
        return False
    if method != "auto":
        return method == "rational"
    if not A.is_cuda or A.shape[-1] < _SMALLEST_BY_PRODUCTS:
        return False
    fast = _FAST_FLOAT64 if torch.version.hip is None else _FAST_FLOAT64_ROCM
    return A.dtype == torch.float32 or torch.cuda.get_device_capability(A.device) in fast


@dataclass(frozen=True)
class Resolvents:
    """A matrix with the poles and weights chosen for its spectrum; made by `resolvents`.

    Attributes:
        A: (..., d, d), symmetric positive definite.
        centre: (..., 1, 1), the geometric mean of the bounds on the spectrum.
        approximation: Fits the logarithm between the bounds, divided by `centre`.
    """

    A: Tensor
    centre: Tensor
    approximation: LogApproximation

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of w_j s_j, (..., 1, 1), and R_j, (..., d, d)."""
        for shift, weight in zip(self.approximation.shifts, self.approximation.weights, strict=True):
            distance = shift * self.centre
            shifted = self.A.clone()
            shifted.diagonal(dim1=-2, dim2=-1).add_(distance.squeeze(-1))
            yield weight * distance, _inverse(shifted)[0]

    def sweep(self, direction: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Log A and, with a direction P, D log[A](P).

        A few random vectors are sent through D log[A](A), which is the identity, to see that the inverses are good.

        Args:
            direction: (..., d, d), symmetric; batch dimensions broadcast with those of A.

        Returns:
            (..., d, d) and (..., d, d) or None, outside the autograd graph.

        Raises:
            RationalLogError: The random vectors came back changed, or not finite.
        """
        with torch.no_grad(), full_precision(self.A):
            size = self.A.shape[-1]
            logarithm = torch.zeros_like(self.A)
            derivative = self.A.new_zeros(())
            signs = torch.randint(
                0, 2, (size, _PROBES), generator=torch.Generator("cpu").manual_seed(0), device="cpu"
            )
            probes = (2 * signs - 1).to(self.A)
            returned = torch.zeros_like(probes)
            for weight, resolvent in self:
                weighted = weight * resolvent
                logarithm -= weighted
                if direction is not None:
                    derivative = derivative + weighted @ direction @ resolvent
                returned = returned + weighted @ (self.A @ (resolvent @ probes))
            logarithm.diagonal(dim1=-2, dim2=-1).add_(
                self.centre.squeeze(-1).log() + self.approximation.constant
            )
            residual = ((returned - probes).norm(dim=(-2, -1)).max() / probes.norm()).item()
        limit = self.residual_limit
        if not residual <= limit:
            raise RationalLogError(f"its residual is {residual:.1e}, above {limit:.1e}")
        return logarithm, None if direction is None else derivative

    @property
    def residual_limit(self) -> float:
        """Bound on the relative change of the random vectors by the approximation and the rounding of the inverses."""
        rounding = torch.finfo(self.A.dtype).eps * self.approximation.condition
        return 2 * _TOLERANCE[self.A.dtype] + rounding / 4


def resolvents(A: Tensor) -> Resolvents:
    """Bound the spectrum of A and choose the poles for it.

    λ_max ≤ ‖A⁴‖_F^(1/4) and 1/λ_min ≤ ‖A⁻⁴‖_F^(1/4), which are too large by a factor of d^(1/8) at most (2.8 at
    d = 4096). In a batch, all matrices share the poles that the worst conditioned among them needs.

    Args:
        A: (..., d, d), float32 or float64, symmetric; not empty.

    Returns:
        What `sweep` needs. The host waits for the device once.

    Raises:
        RationalLogError: A is not finite, not positive definite, or too ill-conditioned for its dtype.
    """
    with torch.no_grad(), full_precision(A):
        A = A.detach()
        largest = _spectral_norm_bound(A)
        inverse, failed = _inverse(A / largest)
        smallest = _spectral_norm_bound(inverse).reciprocal()
        condition, any_failed = torch.stack([smallest.amin().reciprocal(), failed.any().to(A.dtype)]).tolist()
        if any_failed or not condition < torch.inf:
            raise RationalLogError("it is not positive definite, or not finite")
        most = _LARGEST_CONDITION_TIMES_EPS / torch.finfo(A.dtype).eps
        if condition > most:
            raise RationalLogError(
                f"its condition number may be {condition:.1e}, and inverses in {A.dtype} are reliable below {most:.0e}"
            )
        try:
            approximation = log_approximation(condition, _TOLERANCE[A.dtype])
        except ApproximationError as error:
            raise RationalLogError(str(error)) from error
        return Resolvents(A, largest * smallest.sqrt(), approximation)


def surely_positive_semidefinite(A: Tensor) -> bool:
    """Whether a Cholesky factorisation shows that no eigenvalue of A is below −d·eps·‖A‖_F.

    Args:
        A: (..., d, d), symmetric.

    Returns:
        True where that is certain; False where an eigendecomposition has to decide.
    """
    with torch.no_grad(), full_precision(A):
        shifted = A.clone()
        tolerance = A.shape[-1] * torch.finfo(A.dtype).eps * torch.linalg.matrix_norm(shifted, keepdim=True)
        shifted.diagonal(dim1=-2, dim2=-1).add_(tolerance.squeeze(-1))
        return not bool(torch.linalg.cholesky_ex(shifted)[1].any())


def _spectral_norm_bound(A: Tensor) -> Tensor:
    """‖A⁴‖_F^(1/4) ≥ ‖A‖₂, (..., 1, 1)."""
    scale = A.abs().amax(dim=(-2, -1), keepdim=True)  # so that no power overflows or vanishes
    scaled = A / scale
    square = scaled @ scaled
    return scale * torch.linalg.matrix_norm(square @ square, keepdim=True).pow(0.25)


def _inverse(A: Tensor) -> tuple[Tensor, Tensor]:
    """A⁻¹ and, for each matrix, whether its Cholesky factorisation failed."""
    factor, info = torch.linalg.cholesky_ex(A)
    return torch.cholesky_inverse(factor), info != 0


def warn_of_fall_back(function: str, reason: RationalLogError) -> None:
    """Warn that an eigendecomposition replaces the rational logarithm; call it from the public function.

    Args:
        function: The name of the public function.
        reason: Why the rational logarithm failed.
    """
    warnings.warn(
        f"{function}: the matrix logarithm could not be formed from matrix products ({reason}); an eigendecomposition "
        "was used instead, which is much slower on a GPU. Add a larger multiple of the identity, use float64, or pass "
        "method='eigh' to have no warning",
        RationalLogWarning,
        stacklevel=3,
    )
