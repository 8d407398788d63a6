"""Value and logit gradient of the `token` loss for one chunk of positions, by a Krylov quadratic form.

Nothing here is differentiated by autograd: the gradient comes from the Krylov basis that gave the value.
Legend: C positions of the chunk, V vocabulary, D embedding width, K kept tokens,
M Krylov order, B positions of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.lm.chunk_sizes import elements_on
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.token_form import token_form, trace
from mce_llm.lm.top_tokens import top_tokens
from mce_llm.matrix.krylov import log_quadratic_form
from mce_llm.matrix.precision import full_precision

# Elements of a block of rows that gradients of logits are assembled in: they should stay in a cache.
_ASSEMBLED_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}


@dataclass(frozen=True)
class TokenChunk:
    """The token loss of one chunk.

    Attributes:
        value_C: MCE per position, nats.
        tail_mass_C: δ, the probability that the density matrix counts as isotropic background.
        gap_C: Value at order m minus value at order m−1, an estimate of the truncation error (≥ 0 up to rounding);
            at order 1 the whole value of the quadratic form. None where it was not asked for.
    """

    value_C: Tensor
    tail_mass_C: Tensor
    gap_C: Tensor | None


def is_full_vocabulary(config: MatrixLossConfig, vocabulary: int) -> bool:
    """Whether the `token` loss keeps every token of a vocabulary of this size."""
    return config.support is None or config.support >= vocabulary


def token_chunk(
    probabilities_CV: Tensor,
    labels_C: Tensor,
    geometry: TokenGeometry,
    config: MatrixLossConfig,
    *,
    gradient: bool = False,
    gap: bool = False,
) -> TokenChunk:
    """MCE(ê_y ê_yᵀ, Q) = −ê_yᵀ log(Q) ê_y + tr Q per position.

    Args:
        probabilities_CV: q, (C, V) softmax of the logits. With `gradient` it is overwritten with
            q ⊙ (1 + λ(g − ⟨q, g⟩)), g = ∂MCE/∂q: the gradient of CE + λ·MCE in the logits, but for the −1 at the
            label.
        labels_C: (C,) target ids, none ignored.
        geometry: The token rows ê, constant.
        config: `weight`, `shrinkage`, `support` and `order` are read.
        gradient: Overwrite the probabilities with the gradient.
        gap: Report `gap_C`, which costs a second small eigendecomposition.

    Returns:
        Values and diagnostics of the chunk.
    """
    kernel = _full_vocabulary if is_full_vocabulary(config, probabilities_CV.shape[-1]) else _top_support
    return kernel(probabilities_CV, labels_C, geometry, config, gradient, gap)


def _top_support(
    q_CV: Tensor,
    labels_C: Tensor,
    geometry: TokenGeometry,
    config: MatrixLossConfig,
    gradient: bool,
    gap: bool,
) -> TokenChunk:
    """Over the frame [ê_y; ê_top1 … ê_topK]; all tokens that are not among the top K are background."""
    assert config.support is not None
    keep = 1 - config.epsilon
    top_q_CK, top_CK = top_tokens(q_CV, config.support)
    top_q_CK = top_q_CK.to(geometry.dtype)
    directed_CK = None if geometry.all_directed else geometry.has_direction_V[top_CK]
    inside_CK = top_q_CK if directed_CK is None else top_q_CK * directed_CK
    tail_C = (1 - inside_CK.sum(dim=-1)).clamp_min_(0)

    # A target among the top tokens stands in the frame twice. Its weight goes to the first place: the two together
    # would span a direction of length zero, in which coordinates of confident rows grow at the cost of the rest.
    labels_C1 = labels_C.unsqueeze(-1)
    weights_CK = keep * inside_CK
    target_CK = torch.where(top_CK == labels_C1, weights_CK, 0)
    form = token_form(
        geometry,
        torch.cat([labels_C1, top_CK], dim=-1),
        torch.cat([target_CK.sum(dim=-1, keepdim=True), weights_CK - target_CK], dim=-1),
        (keep * tail_C + config.epsilon) / geometry.width,
        order=config.order,
        floor=config.epsilon / geometry.width,
        gap=gap,
        memory=q_CV.numel() // 2,
    )
    lengths_CK = geometry.squared_length_V[top_CK]
    trace_C = keep * ((inside_CK * lengths_CK).sum(dim=-1) + tail_C) + config.epsilon
    if gradient:
        g_tail_C1 = keep * (form.trace_C / geometry.width + 1).unsqueeze(-1)
        g_CK = (form.gradient_CF[:, 1:] + lengths_CK).mul_(keep)
        if directed_CK is not None:
            g_CK = torch.where(directed_CK, g_CK, g_tail_C1)
        g_CK.sub_(g_tail_C1)  # what the top tokens have beyond the tail
        mean_C1 = (top_q_CK * g_CK).sum(dim=-1, keepdim=True)
        q_CV.mul_((1 - config.weight * mean_C1).to(q_CV.dtype))
        slope_CK = g_CK.sub_(mean_C1).mul_(config.weight).add_(1).mul_(top_q_CK)
        q_CV.scatter_(-1, top_CK, slope_CK.to(q_CV.dtype))
    return TokenChunk(form.value_C + trace_C, tail_C, _gap(form.value_C, form.previous_C) if gap else None)


def _full_vocabulary(
    q_CV: Tensor,
    labels_C: Tensor,
    geometry: TokenGeometry,
    config: MatrixLossConfig,
    gradient: bool,
    gap: bool,
) -> TokenChunk:
    """Lanczos in the embedding space over every token: 2m − 1 matrix products with the table at order m.

    The products ⟨v_j, e_v − μ⟩ of the Krylov vectors with every row are kept, (C, M, V): the last vector needs no
    image, and the gradient no product at all.
    """
    keep = 1 - config.epsilon
    dtype, order = geometry.dtype, min(config.order, geometry.width)
    inside_CV = q_CV.to(dtype) if geometry.all_directed else q_CV.to(dtype) * geometry.has_direction_V
    tail_C = (1 - inside_CV.sum(dim=-1)).clamp_min(0)
    shift_C1 = ((keep * tail_C + config.epsilon) / geometry.width).unsqueeze(-1)
    trace_C = keep * (inside_CV @ geometry.squared_length_V + tail_C) + config.epsilon
    scale2_V = geometry.scale_V.square()
    weights_CV = inside_CV * (keep * scale2_V)
    del inside_CV
    products_CMV = weights_CV.new_empty(weights_CV.shape[0], order, weights_CV.shape[1])
    steps = iter(range(order))

    def apply(vectors_CD: Tensor) -> Tensor:
        step = next(steps)
        products_CV = geometry.project_centred(vectors_CD, out=products_CMV[:, step])
        # The memory of the next step's products serves as a buffer.
        weighted_CV = torch.mul(products_CV, weights_CV, out=products_CMV[:, step + 1])
        return geometry.combine_centred(weighted_CV).addcmul_(shift_C1, vectors_CD)

    def quadratic(vectors_CD: Tensor) -> Tensor:
        products_CV = geometry.project_centred(vectors_CD, out=products_CMV[:, next(steps)])
        length_C = vectors_CD.square().sum(dim=-1)
        # The weights are not used again and may be overwritten.
        return weights_CV.mul_(products_CV).mul_(products_CV).sum(dim=-1) + shift_C1.squeeze(-1) * length_C

    form = log_quadratic_form(
        apply,
        geometry.rows(labels_C),
        order,
        shift=config.epsilon / geometry.width,
        quadratic=quadratic,
        previous=gap,
        largest=max(1.0, geometry.largest_squared_length),
    )

    if gradient:
        # g_v = (1−ε)(r_v² Σ_ij M_ij ũ_iv ũ_jv + ‖ê_v‖²), with ũ the kept products.
        g_background_C1 = keep * (trace(form.core) / geometry.width + 1).unsqueeze(-1)
        block = max(1, _block_elements(q_CV) // products_CMV[0].numel())
        for q_BV, core_BMM, products_BMV, background_B1 in zip(
            q_CV.split(block),
            form.core.split(block),
            products_CMV.split(block),
            g_background_C1.split(block),
            strict=True,
        ):
            with full_precision(q_BV):
                g_BV = (core_BMM @ products_BMV).mul_(products_BMV).sum(dim=1)
            g_BV.mul_(scale2_V).add_(geometry.squared_length_V).mul_(keep)
            if not geometry.all_directed:
                g_BV = torch.where(geometry.has_direction_V, g_BV, background_B1)
            into_logit_gradient(q_BV, g_BV, config.weight)
    return TokenChunk(form.value + trace_C, tail_C, _gap(form.value, form.previous) if gap else None)


def into_logit_gradient(q_CV: Tensor, g_CV: Tensor, weight: float) -> None:
    """Q ← q ⊙ (1 + λ(g − ⟨q, g⟩)) in place.

    Args:
        q_CV: (C, V) probabilities, overwritten.
        g_CV: ∂MCE/∂q, broadcastable to (C, V).
        weight: λ.
    """
    block = max(1, _block_elements(q_CV) // q_CV.shape[-1])
    for q_BV, g_BV in zip(q_CV.split(block), g_CV.expand_as(q_CV).split(block), strict=True):
        g_BV = g_BV.to(q_BV.dtype)
        mean_B1 = (q_BV * g_BV).sum(dim=-1, keepdim=True)
        q_BV.mul_((g_BV - mean_B1).mul_(weight).add_(1))


def _block_elements(tensor: Tensor) -> int:
    return elements_on(tensor.device, _ASSEMBLED_ELEMENTS)


def _gap(value_C: Tensor, previous_C: Tensor | None) -> Tensor:
    return value_C if previous_C is None else value_C - previous_C
