"""CE + λ·MCE of the kind `token` for one chunk of logits, with its gradient in them, by the kernels.

The same loss as softmax, `mce_llm.lm.token_kernel` and the subtraction at the label together, without probabilities:
between the two passes over the logits there are only numbers of kept tokens.
Legend: C positions of the chunk, V vocabulary, K kept tokens, F = K + 1 frame vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.kernels.positions import frame_of, value_and_factors
from mce_llm.lm.kernels.row_softmax import logit_gradient, row_statistics
from mce_llm.lm.kernels.token_form import fused_token_form


@dataclass(frozen=True)
class FusedTokenChunk:
    """The losses of one chunk, float32.

    Attributes:
        cross_entropy_C: −log q_y per position, nats.
        value_C: MCE per position, nats.
        tail_mass_C: δ, the probability that the density matrix counts as isotropic background.
        gap_C: Value at order m minus value at order m−1; at order 1 the whole value of the quadratic form. None where
            it was not asked for.
    """

    cross_entropy_C: Tensor
    value_C: Tensor
    tail_mass_C: Tensor
    gap_C: Tensor | None


def fused_token_chunk(
    logits_CV: Tensor,
    labels_C: Tensor,
    geometry: TokenGeometry,
    config: MatrixLossConfig,
    *,
    gradient_CV: Tensor | None = None,
    gap: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> FusedTokenChunk:
    """−log q_y and MCE(ê_y ê_yᵀ, Q) per position, and the gradient of CE + λ·MCE.

    For settings that `mce_llm.lm.kernels.token_form.supports` accepts.

    Args:
        logits_CV: (C, V) float32, rows consecutive in memory.
        labels_C: (C,) int64 target ids, none ignored.
        geometry: The token rows ê, constant.
        config: `weight`, `shrinkage`, `support` and `order` are read.
        gradient_CV: Where ∂(CE + λ·MCE)/∂(H Wᵀ + b) goes, in its dtype; it may be `logits_CV`. None for no gradient.
        gap: Report `gap_C`.
        logit_scale: Factor that the logits have been multiplied with.
        softcap: c of the c·tanh(z/c) that they have gone through.

    Returns:
        Values and diagnostics of the chunk.
    """
    rows = row_statistics(logits_CV, labels_C, maxima=True)
    frame = frame_of(logits_CV, labels_C, rows, geometry, config)
    form = fused_token_form(
        geometry,
        frame.ids_CF,
        frame.weights_CF,
        frame.shift_C,
        order=config.order,
        shrinkage_floor=config.epsilon / geometry.width,
        gap=gap,
    )
    value_C, factor_C, kept_factor_CK = value_and_factors(
        frame, form, geometry, config, gradient=gradient_CV is not None
    )
    if gradient_CV is not None:
        logit_gradient(
            logits_CV,
            labels_C,
            rows,
            factor_C,
            frame.kept_CK,
            kept_factor_CK,
            gradient_CV,
            logit_scale=logit_scale,
            softcap=softcap,
        )
    gap_C = None
    if gap:
        gap_C = form.value_C if form.previous_C is None else form.value_C - form.previous_C
    return FusedTokenChunk(rows.cross_entropy_C, value_C, frame.tail_C, gap_C)
