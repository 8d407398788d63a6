"""A rational approximation of the logarithm on an interval with few poles, in partial fractions.

log λ ≈ c − Σ_j w_j·s_j/(λ + s_j) with s_j, w_j > 0. Every term is operator monotone, so the matrix function that it
defines, like the logarithm, never has an indefinite derivative. The poles come from the AAA algorithm (Nakatsukasa,
Sète and Trefethen, SIAM J. Sci. Comput. 40(3), 2018); the residues from least squares on the values and on the slopes,
because the gradients of the matrix losses are as sensitive to the slopes as their values are to the values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mce_llm.errors import MceLlmError

_MOST_POLES = 32
_BUCKETS_PER_DECADE = 2  # approximations are kept for condition numbers rounded up to these
_GRID = 1200
_FINE_GRID = 4999  # shares no inner points with the grid


class ApproximationError(MceLlmError, ArithmeticError):
    """No rational function with the largest number of poles reaches the accuracy on so wide an interval."""


@dataclass(frozen=True)
class LogApproximation:
    """log λ ≈ constant − Σ_j weights[j]·shifts[j]/(λ + shifts[j]) for 1/√κ ≤ λ ≤ √κ.

    Attributes:
        condition: κ ≥ 1, the ratio of the ends of the interval.
        constant: c.
        shifts: s_j > 0.
        weights: w_j > 0.
        value_error: Largest |r(λ) − log λ| found on a fine grid.
        slope_error: Largest |λ·r′(λ) − 1| found on it. It also bounds the relative error of the divided differences,
            so of every entry of the Loewner matrix.
    """

    condition: float
    constant: float
    shifts: tuple[float, ...]
    weights: tuple[float, ...]
    value_error: float
    slope_error: float


def log_approximation(condition: float, tolerance: float) -> LogApproximation:
    """The approximation with the fewest poles whose two errors stay below `tolerance`.

    At κ = 1e5: 13 poles for 1e-5, 19 for 1e-8. It takes well below a second, once for each half decade of κ.

    Args:
        condition: At least this wide an interval: κ ≥ 1.
        tolerance: Bound on `value_error` and `slope_error`.

    Returns:
        An approximation for κ rounded up to the next half power of ten.

    Raises:
        ApproximationError: κ is not finite, or 32 poles do not suffice (κ above 1e9 or so for 1e-8).
    """
    if not math.isfinite(condition):
        raise ApproximationError(f"the condition number is {condition}")
    bucket = max(1, math.ceil(_BUCKETS_PER_DECADE * math.log10(max(condition, 1.0)) - 1e-9))
    return _fewest_poles(bucket, tolerance)


@lru_cache(maxsize=64)
def _fewest_poles(bucket: int, tolerance: float) -> LogApproximation:
    condition = 10 ** (bucket / _BUCKETS_PER_DECADE)
    for shifts in _poles(condition):
        if len(shifts) == 0:
            continue
        found = _fit(condition, shifts)
        if max(found.value_error, found.slope_error) <= tolerance and min(found.weights) > 0:
            return found
    raise ApproximationError(
        f"no {_MOST_POLES} poles approximate the logarithm to {tolerance:.0e} at a condition number of {condition:.0e}"
    )


def _log_grid(condition: float, size: int) -> Tensor:
    half = math.log(condition) / 2
    return torch.linspace(-half, half, size, dtype=torch.float64, device="cpu").exp()


def _poles(condition: float) -> Iterator[Tensor]:
    """Shifts s_j of the poles −s_j of the AAA approximants with 2, 3, … support points."""
    grid = _log_grid(condition, _GRID)
    values = grid.log()
    free = torch.ones_like(grid, dtype=torch.bool)
    support: list[int] = []
    approximation = values.mean().expand_as(values)
    for points in range(1, _MOST_POLES + 2):
        # The next support point is where the approximation so far is worst.
        worst = int(((values - approximation).abs() * free).argmax())
        support.append(worst)
        free[worst] = False
        cauchy = 1 / (grid[free, None] - grid[None, support])
        loewner = (values[free, None] - values[None, support]) * cauchy
        weights = torch.linalg.svd(loewner, full_matrices=False)[2][-1]
        approximation = values.clone()
        approximation[free] = (cauchy @ (weights * values[support])) / (cauchy @ weights)
        if points > 1:
            yield _negative_roots(weights, grid[support], math.log(condition))


def _negative_roots(weights: Tensor, support: Tensor, width: float) -> Tensor:
    """All s > 0 with Σ_i w_i/(−s − z_i) = 0: sign changes on a fine grid, each bisected to the last digit."""

    def denominator(log_shifts: Tensor) -> Tensor:
        return (weights / (-log_shifts.exp().unsqueeze(-1) - support)).sum(dim=-1)

    reach = width + 12
    grid = torch.linspace(-reach, reach, 20001, dtype=torch.float64, device="cpu")
    signs = denominator(grid).sign()
    crossings = (signs[1:] != signs[:-1]).nonzero().squeeze(-1)
    low, high, sign = grid[crossings], grid[crossings + 1], signs[crossings]
    for _ in range(60):
        middle = (low + high) / 2
        left = denominator(middle).sign() == sign
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return ((low + high) / 2).exp()


def _basis(shifts: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Values of 1 and of −s/(λ + s) at the points, and λ times their slopes."""
    fractions = shifts / (points.unsqueeze(-1) + shifts)
    ones = torch.ones_like(points).unsqueeze(-1)
    values = torch.cat([ones, -fractions], dim=-1)
    slopes = torch.cat([0 * ones, fractions * (1 - fractions)], dim=-1)
    return values, slopes


def _fit(condition: float, shifts: Tensor) -> LogApproximation:
    """Constant and weights for given poles, with the errors that they leave."""
    grid = _log_grid(condition, _GRID)
    rows = torch.cat(_basis(shifts, grid))
    target = torch.cat([grid.log(), torch.ones_like(grid)]).unsqueeze(-1)
    scale = rows.norm(dim=0)
    # The columns are nearly dependent where poles are close: gelsd cuts what rounding cannot tell apart.
    solution = torch.linalg.lstsq(rows / scale, target, driver="gelsd").solution.squeeze(-1) / scale
    fine = _log_grid(condition, _FINE_GRID)
    values, slopes = _basis(shifts, fine)
    return LogApproximation(
        condition=condition,
        constant=float(solution[0]),
        shifts=tuple(shifts.tolist()),
        weights=tuple(solution[1:].tolist()),
        value_error=float((values @ solution - fine.log()).abs().max()),
        slope_error=float((slopes @ solution - 1).abs().max()),
    )
