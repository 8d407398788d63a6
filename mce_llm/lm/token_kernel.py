"""Value and logit gradient of the `token` loss for one chunk of positions, by a Krylov quadratic form.

Nothing here is differentiated by autograd: the gradient comes from the Krylov basis that gave the value.
Legend: C positions of the chunk, V vocabulary, D embedding width, K kept tokens, M Krylov order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.matrix.krylov import LogQuadraticForm, euclidean_inner, log_quadratic_form


@dataclass(frozen=True)
class TokenChunk:
    """The token loss of one chunk.

    Attributes:
        value_C: MCE per position, nats.
        tail_mass_C: δ, the probability that the density matrix counts as isotropic background.
        gap_C: Value at order m minus value at order m−1, an estimate of the truncation error (≥ 0 up to rounding);
            at order 1 the whole value of the quadratic form.
    """

    value_C: Tensor
    tail_mass_C: Tensor
    gap_C: Tensor


def token_chunk(
    probabilities_CV: Tensor,
    labels_C: Tensor,
    geometry: TokenGeometry,
    config: MatrixLossConfig,
    gradient_CV: Tensor | None = None,
) -> TokenChunk:
    """MCE(ê_y ê_yᵀ, Q) = −ê_yᵀ log(Q) ê_y + tr Q per position, adding λ·∂MCE/∂logits into `gradient_CV`.

    Args:
        probabilities_CV: (C, V) softmax of the logits.
        labels_C: (C,) target ids, none ignored.
        geometry: The token rows ê, constant.
        config: `weight`, `shrinkage`, `support` and `order` are read.
        gradient_CV: (C, V) buffer, added to in place; None skips the gradient.

    Returns:
        Values and diagnostics of the chunk.
    """
    if config.support is None or config.support >= probabilities_CV.shape[-1]:
        return _full_vocabulary(probabilities_CV, labels_C, geometry, config, gradient_CV)
    return _top_support(probabilities_CV, labels_C, geometry, config, gradient_CV)


def _top_support(
    q_CV: Tensor,
    labels_C: Tensor,
    geometry: TokenGeometry,
    config: MatrixLossConfig,
    gradient_CV: Tensor | None,
) -> TokenChunk:
    """Lanczos in coordinates over the frame [ê_y; ê_top1 … ê_topK], whose Gram matrix is all that is needed."""
    assert config.support is not None
    keep = 1 - config.epsilon
    top_q_CK, top_CK = q_CV.topk(config.support, dim=-1)
    top_q_CK = top_q_CK.to(geometry.dtype)
    directed_CK = geometry.has_direction_V[top_CK]
    inside_CK = top_q_CK * directed_CK
    tail_C = (1 - inside_CK.sum(dim=-1)).clamp_min(0)
    shift_C = (keep * tail_C + config.epsilon) / geometry.width

    frame_CFD = geometry.rows(torch.cat([labels_C.unsqueeze(-1), top_CK], dim=-1))
    gram_CFF = frame_CFD @ frame_CFD.mT
    weights_CF = torch.nn.functional.pad(keep * inside_CK, (1, 0))  # the target itself is not part of Q

    def apply(coordinates_CF: Tensor) -> Tensor:
        products_CF = (gram_CFF @ coordinates_CF.unsqueeze(-1)).squeeze(-1)
        return shift_C.unsqueeze(-1) * coordinates_CF + weights_CF * products_CF

    def inner(left_CJF: Tensor, right_C1F: Tensor) -> Tensor:
        return euclidean_inner(left_CJF, right_C1F @ gram_CFF)

    start_CF = torch.zeros_like(weights_CF)
    start_CF[:, 0] = 1
    form = log_quadratic_form(
        apply, start_CF, config.order, shift=config.epsilon / geometry.width, inner=inner
    )

    lengths_CK = geometry.squared_length_V[top_CK]
    trace_C = keep * ((inside_CK * lengths_CK).sum(dim=-1) + tail_C) + config.epsilon
    if gradient_CV is not None:
        products_CMF = form.basis @ gram_CFF
        g_CK = ((form.core @ products_CMF) * products_CMF).sum(dim=1)[:, 1:]
        g_CK = keep * (g_CK + lengths_CK)
        g_tail_C1 = keep * (_trace(form.core) / geometry.width + 1).unsqueeze(-1)
        g_CK = torch.where(directed_CK, g_CK, g_tail_C1)
        mean_C1 = g_tail_C1 + (top_q_CK * (g_CK - g_tail_C1)).sum(dim=-1, keepdim=True)
        gradient_CV.addcmul_(q_CV, (config.weight * (g_tail_C1 - mean_C1)).to(q_CV.dtype))
        gradient_CV.scatter_add_(
            -1, top_CK, (config.weight * top_q_CK * (g_CK - g_tail_C1)).to(gradient_CV.dtype)
        )
    return TokenChunk(form.value + trace_C, tail_C, _gap(form))


def _full_vocabulary(
    q_CV: Tensor,
    labels_C: Tensor,
    geometry: TokenGeometry,
    config: MatrixLossConfig,
    gradient_CV: Tensor | None,
) -> TokenChunk:
    """Lanczos in the embedding space over every token: two matrix products with the table an order."""
    keep = 1 - config.epsilon
    inside_CV = q_CV.to(geometry.dtype) * geometry.has_direction_V
    tail_C = (1 - inside_CV.sum(dim=-1)).clamp_min(0)
    shift_C = (keep * tail_C + config.epsilon) / geometry.width

    def apply(vectors_CD: Tensor) -> Tensor:
        weighted_CV = geometry.project(vectors_CD).mul_(inside_CV)
        return keep * geometry.combine(weighted_CV) + shift_C.unsqueeze(-1) * vectors_CD

    form = log_quadratic_form(
        apply, geometry.rows(labels_C), config.order, shift=config.epsilon / geometry.width
    )

    trace_C = keep * (inside_CV @ geometry.squared_length_V + tail_C) + config.epsilon
    if gradient_CV is not None:
        # G = Σ_ij M_ij v_i v_jᵀ is diagonalised, so that g_v needs one product an order: Σ_i μ_i ⟨w_i, ê_v⟩².
        # A prediction that is not a number must reach the loss as one, and not stop the eigensolver.
        usable_C1 = torch.isfinite(form.core).all(dim=-1).all(dim=-1, keepdim=True)
        mu_CM, rotation_CMM = torch.linalg.eigh(torch.where(usable_C1.unsqueeze(-1), form.core, 0))
        mu_CM = torch.where(usable_C1, mu_CM, torch.nan)
        directions_CMD = rotation_CMM.mT @ form.basis
        g_CV = geometry.squared_length_V.expand_as(q_CV).clone()
        for i in range(mu_CM.shape[-1]):
            g_CV.addcmul_(geometry.project(directions_CMD[:, i]).square_(), mu_CM[:, i : i + 1])
        g_background_C1 = (_trace(form.core) / geometry.width + 1).unsqueeze(-1)
        g_CV = keep * torch.where(geometry.has_direction_V, g_CV, g_background_C1)
        mean_C1 = (q_CV * g_CV).sum(dim=-1, keepdim=True)
        gradient_CV.addcmul_(q_CV, (g_CV - mean_C1).to(q_CV.dtype), value=config.weight)
    return TokenChunk(form.value + trace_C, tail_C, _gap(form))


def _gap(form: LogQuadraticForm) -> Tensor:
    return form.value if form.previous is None else form.value - form.previous


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
