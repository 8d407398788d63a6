"""Eigenvalues of covariances and predicted density matrices, without forming the d×d matrix where it can be avoided.

Pure functions of tensors; the positions are chosen in `head_sample`.
Legend: N rows, C positions of a chunk, V vocabulary, D width, K kept tokens, R eigenvalues that are known one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.top_tokens import top_tokens
from mce_llm.matrix.precision import exact_dtype, full_precision

# Elements of the rows that are gathered at a time.
_GATHERED_ELEMENTS = 2**22
# Larger matrices are decomposed where they are; smaller ones on the CPU, where that takes milliseconds.
_LARGEST_ON_CPU = 1024


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of one or more positive semi-definite d×d matrices.

    Attributes:
        eigenvalues: (..., R) in descending order, float64, on the CPU.
        rest: (...) The value of each of the d − R others.
        width: d.
    """

    eigenvalues: Tensor
    rest: Tensor
    width: int

    @property
    def trace(self) -> Tensor:
        """Σ of all d eigenvalues, (...)."""
        return self.eigenvalues.sum(dim=-1) + self._others * self.rest

    @property
    def effective_rank(self) -> Tensor:
        """exp(−Σ p_i log p_i) with p_i = λ_i/Σλ, (...); NaN for a zero matrix."""
        trace = self.trace
        shares, share = self.eigenvalues / trace.unsqueeze(-1), self.rest / trace
        entropy = torch.special.entr(shares).sum(dim=-1) + self._others * torch.special.entr(share)
        return entropy.exp()

    @property
    def top_share(self) -> Tensor:
        """λ_1/Σλ, (...): 1/d for an isotropic matrix, 1 for one of rank one."""
        return self.eigenvalues[..., 0] / self.trace

    @property
    def _others(self) -> int:
        return self.width - self.eigenvalues.shape[-1]


def rows_spectrum(rows_ND: Tensor) -> Spectrum:
    """Spectrum of the covariance of rows, (1/N) Σ (x − x̄)(x − x̄)ᵀ; from the N×N Gram matrix where N < d.

    Args:
        rows_ND: (N, d), N ≥ 1, any floating dtype.
    """
    rows_ND = _exact(rows_ND)
    centred_ND = rows_ND - rows_ND.mean(dim=0)
    count, width = centred_ND.shape
    with full_precision(centred_ND):
        moment = centred_ND @ centred_ND.T if count < width else centred_ND.T @ centred_ND
    eigenvalues = _eigenvalues(moment / count)
    return Spectrum(eigenvalues, eigenvalues.new_zeros(()), width)


def matrix_spectrum(matrix_DD: Tensor) -> Spectrum:
    """Spectrum of one symmetric positive semi-definite matrix, (d, d)."""
    eigenvalues = _eigenvalues(matrix_DD)
    return Spectrum(eigenvalues, eigenvalues.new_zeros(()), matrix_DD.shape[-1])


def token_spectrum(q_CV: Tensor, geometry: TokenGeometry, epsilon: float, support: int) -> Spectrum:
    """Spectrum of Q_t = (1−ε)(Σ_{top k} q_v ê_v ê_vᵀ + δ_t I/d) + ε I/d for each position.

    The rows √q_v ê_v have a k×k Gram matrix with the same positive eigenvalues as the sum; the background lifts those
    by β_t = ((1−ε) δ_t + ε)/d and is itself every other eigenvalue.

    Args:
        q_CV: (C, V) probabilities.
        geometry: The token rows ê.
        epsilon: ε.
        support: k; more than V counts as V.

    Returns:
        One spectrum a position, R = min(k, d).
    """
    width = geometry.width
    top_q_CK, top_CK = top_tokens(q_CV, min(support, q_CV.shape[-1]))
    inside_CK = top_q_CK.to(geometry.dtype) * geometry.has_direction_V[top_CK]
    tail_C = (1 - inside_CK.sum(dim=-1)).clamp_min(0)
    background_C = _exact((1 - epsilon) * tail_C + epsilon).cpu() / width
    block = max(1, _GATHERED_ELEMENTS // (top_CK.shape[-1] * width))
    grams = []
    with full_precision(inside_CK):
        for ids_BK, weights_BK in zip(top_CK.split(block), inside_CK.split(block), strict=True):
            rows_BKD = geometry.rows(ids_BK).mul_(weights_BK.sqrt().unsqueeze(-1))
            grams.append(rows_BKD @ rows_BKD.mT)
    eigenvalues_CR = (1 - epsilon) * _eigenvalues(torch.cat(grams))[:, :width]
    return Spectrum(eigenvalues_CR + background_C.unsqueeze(-1), background_C, width)


def spread(count: int, wanted: int, device: torch.device) -> Tensor:
    """At most `wanted` evenly spaced indices into `count` items; (S,) int64."""
    taken = min(count, wanted)
    return torch.arange(taken, device=device) * count // max(taken, 1)


def _eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues in descending order, negative ones (rounding) as zero, NaN if an entry is not finite; float64 on the CPU."""
    if not bool(torch.isfinite(matrices).all()):
        return torch.full(matrices.shape[:-1], torch.nan, dtype=torch.float64)
    stays = matrices.device.type in ("cuda", "xpu") and matrices.shape[-1] > _LARGEST_ON_CPU
    placed = matrices if stays else matrices.cpu()
    return torch.linalg.eigvalsh(placed.double()).flip(-1).clamp_min(0).cpu()


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(exact_dtype(tensor.device))
