"""Does the Taylor series of log around I converge for these rows? It does where the spectral radius of Q − I is < 1.

A bound that costs nothing settles the usual case (unit rows and μ = 1 give a radius below 1 unless everything has
collapsed onto one line); only where the bound does not settle it is the radius itself measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mce_llm.matrix import full_precision
from mce_llm.matrix.precision import in_float64
from mce_llm.vision.losses.errors import TaylorDivergenceError
from mce_llm.vision.losses.radius import power_bound

ON_DIVERGENCE = ("raise", "exact", "ignore")
# Rows along exactly one line have radius 1 to rounding, where the series of log 2 still converges.
_ROUNDING = 1e-5


def cross_bound(radius: Tensor, mu: float) -> Tensor:
    """Bound on the spectral radius of C + (μ−1)I from one on that of C.

    Args:
        radius: Bound on the spectral radius of C.
        mu: μ.

    Returns:
        A bound, of the same shape.
    """
    return radius + abs(mu - 1)


def covariance_bound(largest: Tensor, mu: float) -> Tensor:
    """The same for positive semi-definite C, whose eigenvalues are 0 to `largest`: tighter for μ < 1.

    Args:
        largest: Bound on the largest eigenvalue of C.
        mu: μ.

    Returns:
        A bound, of the same shape.
    """
    return torch.maximum((largest + (mu - 1)).abs(), torch.full_like(largest, abs(mu - 1)))


def measured_radius(
    left: Tensor, right: Tensor, scale: float, shift: float, *, symmetric: bool = False
) -> float:
    """Spectral radius of LᵀR·scale + shift·I, or an upper bound of it that is below 1.

    Where the norms of powers do not show that it is below 1 (`power_bound`), eigenvalues tell.

    Args:
        left: L, (m, d).
        right: R, (m, d).
        scale: What the product is multiplied by.
        shift: μ − 1; its absolute value counts as an eigenvalue wherever LᵀR has a null space.
        symmetric: Whether the matrix is.

    Returns:
        The radius or the bound.
    """
    with torch.no_grad(), full_precision(left):
        small = len(left) < left.shape[1]
        matrix = in_float64(left @ right.T if small else left.T @ right) * scale
        matrix.diagonal().add_(shift)
        least = abs(shift) if small else 0.0
        bound = power_bound(matrix)
        if bound >= 1:
            eigenvalues = torch.linalg.eigvalsh(matrix) if symmetric else torch.linalg.eigvals(matrix)
            bound = float(eigenvalues.abs().max())
        return max(bound, least)


def must_be_exact(
    owner: str,
    suspects: Iterable[tuple[str, Callable[[], float]]],
    on_divergence: str,
    remedy: str,
) -> str | None:
    """Measure the matrices that a bound could not settle, and decide what happens to the batch.

    Args:
        owner: The loss, for the message.
        suspects: What each matrix is called, and how to measure its radius.
        on_divergence: "raise" or "exact".
        remedy: What the user may change, for the message.

    Returns:
        Where "exact" is asked for and needed, which matrix has which radius; None where the series converges.

    Raises:
        TaylorDivergenceError: A radius is above 1 beyond rounding and `on_divergence` is "raise".
    """
    for what, measure in suspects:
        radius = measure()
        if radius < 1 + _ROUNDING:
            continue
        if on_divergence == "exact":
            return f"{what} has spectral radius {radius:.3g}"
        raise TaylorDivergenceError(
            f"{owner}: the Taylor series of the logarithm diverges: {what} has spectral radius {radius:.3g}, the limit is "
            f"1. {remedy}; log='exact' or on_divergence='exact' (from such a batch on) take the true logarithm, "
            "on_divergence='ignore' trains on the truncated series all the same",
            radius,
        )
    return None
