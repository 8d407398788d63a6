"""How many directions features use: the spectrum of a set of features, and three measures of dimensional collapse.

Pure functions of tensors. Which features are looked at, and when, is the training loop's matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.errors import MceLlmError
from mce_llm.matrix import ZeroMatrixError, effective_rank_of_rows
from mce_llm.matrix.precision import in_float64

_RANKME_EPSILON = 1e-7  # Garrido et al., equation (1)
_MOST_KEPT = 512


class CollapseError(MceLlmError, ValueError):
    """Features that have no spectrum to speak of; the message says why."""


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of features say.

    Attributes:
        singular_values: Those of the centred rows over √n, in descending order, at most 512.
        effective_rank: exp(entropy of the covariance's normalised eigenvalues), in [1, d]; 1.0 for equal rows.
        rankme: exp(entropy of the normalised singular values of the rows as they are), in [1, d].
        alpha_req: The decay α in λ_i ∝ i^−α of the covariance's eigenvalues; about 1 for good encoders, larger where
            few directions carry all, NaN where fewer than three eigenvalues are positive.
    """

    singular_values: list[float]
    effective_rank: float
    rankme: float
    alpha_req: float


def spectrum_of(features: Tensor) -> Spectrum:
    """The spectrum of features, and what it says of collapse.

    Sources: effective rank, Roy and Vetterli, EUSIPCO 2007, as in the paper; RankMe, Garrido et al., ICML 2023, arXiv
    2210.02885; α-ReQ, Agrawal et al., NeurIPS 2022.

    Args:
        features: (n, d), n ≥ 2, any floating dtype.

    Returns:
        The measures; rank one throughout for features that are all equal.

    Raises:
        CollapseError: They are not finite, or there are fewer than two rows.
    """
    if features.ndim != 2 or len(features) < 2:
        raise CollapseError(f"features must be (n, d) with n >= 2, got shape {tuple(features.shape)}")
    if not bool(torch.isfinite(features).all()):
        bad = int((~torch.isfinite(features).all(dim=1)).sum())
        raise CollapseError(
            f"{bad} of {len(features)} rows of features are not finite: training has diverged"
        )
    rows = in_float64(features)
    centred = rows - rows.mean(dim=0)
    values = torch.linalg.svdvals(centred) / len(rows) ** 0.5
    try:
        rank = float(effective_rank_of_rows(rows))
    except ZeroMatrixError:  # all rows are equal: the measure's limit, as one direction is all that is left
        rank = 1.0
    return Spectrum(
        singular_values=[float(v) for v in values[:_MOST_KEPT]],
        effective_rank=rank,
        rankme=rankme(rows),
        alpha_req=alpha_req(values.square()),
    )


def rankme(features: Tensor) -> float:
    """RankMe(Z) = exp(−Σ p_k log p_k), p_k = σ_k/Σσ + ε, from the singular values of the rows, not centred.

    Args:
        features: (n, d).

    Returns:
        Between 1 and min(n, d), to within ε = 1e-7 a direction.
    """
    values = torch.linalg.svdvals(in_float64(features))
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + _RANKME_EPSILON
    return float((-(shares * shares.log()).sum()).exp())


def alpha_req(eigenvalues: Tensor) -> float:
    """α of λ_i ∝ i^−α: least squares of log λ_i on log i, weighted by 1/i, over the middle of the spectrum.

    The fit leaves out the first directions, which the classes dominate, and the tail, which n rows do not determine:
    it runs over i from r/10 (at most 10) to r/2 (at most 100, at least three values), r the number of eigenvalues
    above rounding.

    Args:
        eigenvalues: (d,) in descending order, not negative.

    Returns:
        α, or NaN for fewer than three positive eigenvalues.
    """
    largest = eigenvalues.max() if len(eigenvalues) else eigenvalues.new_zeros(())
    positive = in_float64(eigenvalues[eigenvalues > 1e-12 * largest])
    count = len(positive)
    if count < 3:
        return float("nan")
    first = min(10, max(1, count // 10))
    last = min(count, max(first + 2, min(100, count // 2)))
    index = torch.arange(first, last + 1, dtype=torch.float64, device=positive.device)
    x, y, weight = index.log(), positive[first - 1 : last].log(), 1 / index
    weight = weight / weight.sum()
    x_mean, y_mean = (weight * x).sum(), (weight * y).sum()
    slope = (weight * (x - x_mean) * (y - y_mean)).sum() / (weight * (x - x_mean).square()).sum()
    return float(-slope)
