"""−‖x‖² e₁ᵀ log(T) e₁ of tridiagonal matrices by resolvents at fixed poles, without an eigendecomposition.

log λ ≈ c − Σ_p w_p/(λ + s_p) on an interval that holds the spectrum (`log_approximation`). So the value needs the first
entry of (T + s_p)⁻¹e₁, and its derivative that whole vector, for a dozen poles: a pivot recurrence of M steps over
(rows, poles), which a GPU runs in a few launches and without making the host wait, where batched eigensolvers do both.

Shape letters: T rows, M order, P poles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mce_llm.matrix.log_approximation import ApproximationError, log_approximation
from mce_llm.matrix.precision import full_precision

_TOLERANCE = 2e-7  # of the value and of every divided difference; a float32 result has no more digits
# Rounding of the matrix lifts or lowers eigenvalues by some eps·‖Q‖; above that share of the largest one, the pivots'
# lower bound absorbs it.
_WIDEST = 1e8
_SLACK = 1.001  # on the upper end: rounding takes a trace a little beyond 1


@dataclass(frozen=True)
class LogPoles:
    """log λ ≈ constant + Σ_p weights[p]·(λ − 1)/(λ + shifts[p]) for smallest ≤ λ ≤ largest.

    Written as what is added to the value at λ = 1, which does not cancel where λ is near 1, as confident rows have it.

    Attributes:
        smallest: Lower end of the interval, positive.
        constant: About log 1 = 0.
        shifts: s_p > 0, ascending.
        weights: Positive.
    """

    smallest: float
    constant: float
    shifts: tuple[float, ...]
    weights: tuple[float, ...]

    def on(self, like: Tensor, size: int | None = None) -> Tensor:
        """Shifts, weights, and weights of −1/(λ + s), which are (1 + s) times these; (3, P), as a tensor has its numbers.

        Args:
            like: The tensor.
            size: Fill up to so many columns, with poles that have no weight; as many as there are poles by default.
        """
        count = len(self.shifts)
        key = (self, like.dtype, like.device, size or count)
        found = _TENSORS.get(key)
        if found is None or _fake_mode(found) is not _fake_mode(like):
            fill = (size or count) - count
            residues = [w * (1 + s) for s, w in zip(self.shifts, self.weights, strict=True)]
            rows = [
                self.shifts + (1.0,) * fill,
                *(r + (0.0,) * fill for r in (self.weights, tuple(residues))),
            ]
            with torch.inference_mode(False):
                found = _TENSORS[key] = torch.tensor(rows, dtype=like.dtype, device=like.device)
        return found


# Made once for each interval and device, of which there are few: a copy from the host would make it wait each time.
_TENSORS: dict[tuple[LogPoles, torch.dtype, torch.device, int], Tensor] = {}


def _fake_mode(tensor: Tensor) -> object:
    """The mode of a dry run that a tensor belongs to, and cannot leave; None for a real one."""
    return getattr(tensor, "fake_mode", None)


def log_poles(smallest: float, largest: float) -> LogPoles | None:
    """Poles for matrices with a spectrum between two numbers.

    The upper end counts as the next power of two: that of rows which are not normalised is another one after each
    training step, and so it need not be worked out, and be kept on the device, for each of them.

    Args:
        smallest: Positive.
        largest: At least `smallest`.

    Returns:
        The poles; None where the interval is so wide (1e8 and more from end to end) that float32 resolvents would lose
        what eigenvalues keep.
    """
    if not 0 < largest < math.inf:
        return None
    mantissa, exponent = math.frexp(largest)
    return _poles_between(smallest, math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent))


@lru_cache(maxsize=64)
def _poles_between(smallest: float, largest: float) -> LogPoles | None:
    largest = max(largest * _SLACK, smallest)
    if not 0 < smallest <= largest < _WIDEST * smallest:
        return None
    try:
        found = log_approximation(largest / smallest, _TOLERANCE)
    except ApproximationError:
        return None
    middle = math.sqrt(smallest * largest)
    # c − Σ w/(λ + s) = (c − Σ w/(1 + s)) + Σ w/(1 + s) · (λ − 1)/(λ + s)
    terms = sorted((s * middle, w * s * middle) for s, w in zip(found.shifts, found.weights, strict=True))
    shifts = tuple(s for s, _ in terms)
    weights = tuple(w / (1 + s) for s, w in terms)
    return LogPoles(smallest, found.constant + math.log(middle) - sum(weights), shifts, weights)


def log_by_poles(
    alphas: Tensor, betas: Tensor, norm2: Tensor, poles: LogPoles, *, previous: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Value, value at order M − 1 and core, as `tridiagonal_log` describes them.

    Args:
        alphas: (T, M), the diagonal.
        betas: (T, M − 1), beside the diagonal.
        norm2: (T,), ‖x‖²; NaN gives NaN for that row.
        poles: For the interval that holds the spectra.
        previous: Form the value at order M − 1 too.

    Returns:
        (T,), (T,) or None, and (T, M, M).
    """
    shifts_P, weights_P, residues_P = poles.on(alphas)
    order = alphas.shape[1]
    alphas, squares = alphas.clamp_min(poles.smallest), betas.square()
    pivots, ratios = _eliminate(alphas, squares, poles.smallest, shifts_P)
    value = -norm2 * _log_of_pivot(pivots[0], poles.constant, shifts_P, weights_P)
    value_before = None
    if previous and order > 1:
        (first, *_), _ = _eliminate(alphas[:, :-1], squares[:, :-1], poles.smallest, shifts_P)
        value_before = -norm2 * _log_of_pivot(first, poles.constant, shifts_P, weights_P)
    # (T + s)⁻¹e₁ from the top down, weighted with the root of what its square has in the derivative.
    resolvents_TPM = alphas.new_empty(alphas.shape[0], len(shifts_P), order)
    entry = residues_P.sqrt() / (pivots[0] + shifts_P)
    resolvents_TPM[..., 0] = entry
    for step, ratio in enumerate(ratios, start=1):
        entry = entry.mul_(ratio)
        resolvents_TPM[..., step] = entry
    with full_precision(alphas):
        core = resolvents_TPM.mT @ resolvents_TPM
    return value, value_before, core.mul_(-norm2[:, None, None])


def _eliminate(
    alphas: Tensor, squares: Tensor, smallest: float, shifts_P: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The pivots λ_j of T + s_p less s_p, from the last row up, and r_{j+1}/r_j of the resolvents r; each (T, P).

    Every Schur complement of T + s is at least the smallest eigenvalue of T plus s. Where rounding has a row's coupling
    take more from it than that (beyond the end of an exhausted Krylov space it does), the coupling counts as what is
    left to take: in the pivot and in the resolvent alike, or its entries would grow from row to row.
    """
    order = alphas.shape[1]
    pivots = [alphas[:, order - 1, None].expand(-1, len(shifts_P))]
    ratios: list[Tensor] = []
    for step in range(order - 2, -1, -1):
        below = pivots[-1] + shifts_P
        taken = torch.minimum(squares[:, step, None] / below, alphas[:, step, None] - smallest)
        pivots.append(alphas[:, step, None] - taken)
        ratios.append(taken.div_(below).sqrt_().neg_())
    return pivots[::-1], ratios[::-1]


def _log_of_pivot(pivot_TP: Tensor, constant: float, shifts_P: Tensor, weights_P: Tensor) -> Tensor:
    """Σ_p w_p (λ_p − 1)/(λ_p + s_p) + constant, where 1/(λ_p + s_p) is the first entry of the resolvent, (T,)."""
    return ((pivot_TP - 1) / (pivot_TP + shifts_P)).mul_(weights_P).sum(dim=-1) + constant
