"""The two terms of the matrix losses for one pair of views, with the gradient to the student's rows.

P are rows of the teacher (constant), Z rows of the student, both (m, d) and already normalised and centred;
A_m×m = P Zᵀ·scale is called K, Z Zᵀ·scale is S. Two forms give the same numbers: `gram` works with m×m matrices, `dim`
with d×d ones. Everything here is outside the autograd graph, in the dtype of the rows, without autocast and TF32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mce_llm.vision.losses.logarithms import Logarithm, TraceOfLog
from mce_llm.vision.losses.products import symmetric_product

FORMS = ("auto", "gram", "dim")


@dataclass(frozen=True)
class Weights:
    """L = −cross · tr log(C_pz + μI) − covariance · tr((C_pp + μI) log(C_zz + μI)) + trace · tr(C_zz + μI).

    The last goes with the one before: without `covariance`, `trace` is not looked at.
    """

    cross: float
    covariance: float = 0.0
    trace: float = 0.0


class PairTerms(NamedTuple):
    """The weighted terms of one pair.

    Attributes:
        cross: −cross · tr log(C_pz + μI).
        covariance: −covariance · tr((C_pp + μI) log(C_zz + μI)).
        trace: trace · tr(C_zz + μI).
        gradient: (m, d), of their sum, to Z.
        cross_radius: Bound on the spectral radius of C_pz; NaN for the exact logarithm, which needs none.
        covariance_radius: Bound on the largest eigenvalue of C_zz, likewise; that of C_pz again where the term is
            not computed.
        floored: How many eigenvalues of C_pz + μI the exact logarithm continues by its tangent.
    """

    cross: Tensor
    covariance: Tensor
    trace: Tensor
    gradient: Tensor
    cross_radius: Tensor
    covariance_radius: Tensor
    floored: Tensor

    @property
    def value(self) -> Tensor:
        """The sum of the terms."""
        return self.cross + self.covariance + self.trace


def cheaper_form(rows: int, dim: int) -> str:
    """`gram` or `dim`, whichever needs fewer multiply-adds.

    At order 4, counted in the code below with 10/16 for a symmetric product, `gram` needs 3.625 m²d + 6.875 m³ and
    `dim` 4.25 md² + 6.25 d³ for a pair. They are even at m = d, and so they are without the covariance term, with
    2 m²d + 2 m³ against 2 md² + 2 d³.

    Args:
        rows: m.
        dim: d.

    Returns:
        The name of the form.
    """
    return "gram" if rows <= dim else "dim"


def pair_terms(P: Tensor, Z: Tensor, scale: float, log: Logarithm, weights: Weights, form: str) -> PairTerms:
    """All terms of one pair; those of weight zero are not computed.

    Args:
        P: (m, d), the teacher's rows.
        Z: (m, d), the student's rows.
        scale: What products of rows are multiplied by; 1/m makes covariances.
        log: Which logarithm.
        weights: λ and γ.
        form: "gram", "dim", or "auto" for the cheaper.

    Returns:
        Values and the gradient to Z.
    """
    if form == "auto":
        form = cheaper_form(*Z.shape)
    terms = _gram_terms if form == "gram" else _dim_terms
    return terms(P, Z, scale, log, weights)


def _gram_terms(P: Tensor, Z: Tensor, scale: float, log: Logarithm, weights: Weights) -> PairTerms:
    """tr(M log(C_zz + μI)) = l(0) tr M + tr(W q(S)), M = C_pp + μI, W = KᵀK + μS."""
    dim = Z.shape[1]
    K = (P @ Z.T).mul_(scale)
    cross, grad_K, cross_radius, floored = _weighted_trace(K, dim, log, weights)
    if not weights.covariance:
        gradient = (grad_K.T @ P).mul_(scale)
        return PairTerms(cross, *_nothing(cross), gradient, cross_radius, cross_radius, floored)
    S = symmetric_product(Z, Z.T).mul_(scale)
    W = symmetric_product(K.T, K).add_(S, alpha=log.mu)
    q, slope, radius = log.gram(S, W)
    trace_of_M = P.square().sum() * scale + log.mu * dim
    covariance = -weights.covariance * (log.at_zero * trace_of_M + (W * q).sum())
    trace = weights.trace * (S.diagonal().sum() + log.mu * dim)
    grad_K.addmm_(K, q, alpha=-2 * weights.covariance)
    grad_S = slope.add_(q, alpha=log.mu).mul_(-weights.covariance)
    grad_S.diagonal().add_(weights.trace)
    gradient = torch.addmm(grad_K.T @ P, grad_S, Z, alpha=2).mul_(scale)
    return PairTerms(cross, covariance, trace, gradient, cross_radius, radius, floored)


def _dim_terms(P: Tensor, Z: Tensor, scale: float, log: Logarithm, weights: Weights) -> PairTerms:
    """The same from C_pz, C_pp and C_zz themselves."""
    dim = Z.shape[1]
    cross, grad_A, cross_radius, floored = _weighted_trace((P.T @ Z).mul_(scale), dim, log, weights)
    gradient = P @ grad_A
    if not weights.covariance:
        return PairTerms(cross, *_nothing(cross), gradient.mul_(scale), cross_radius, cross_radius, floored)
    B = symmetric_product(Z.T, Z).mul_(scale)
    M = symmetric_product(P.T, P).mul_(scale)
    M.diagonal().add_(log.mu)
    value, grad_B, radius = log.cross_entropy(M, B)
    trace = weights.trace * (B.diagonal().sum() + log.mu * dim)
    grad_B.mul_(-weights.covariance).diagonal().add_(weights.trace)
    gradient.addmm_(Z, grad_B, alpha=2).mul_(scale)
    return PairTerms(cross, -weights.covariance * value, trace, gradient, cross_radius, radius, floored)


def _weighted_trace(matrix: Tensor, dim: int, log: Logarithm, weights: Weights) -> TraceOfLog:
    """−cross · tr log(A + μI) and its gradient to A; the rest is that of A."""
    if not weights.cross:
        zero = matrix.new_zeros(())
        return TraceOfLog(zero, torch.zeros_like(matrix), zero, zero)
    found = log.trace(matrix, dim)
    return found._replace(value=found.value * -weights.cross, gradient=found.gradient * -weights.cross)


def _nothing(like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(like), torch.zeros_like(like)
