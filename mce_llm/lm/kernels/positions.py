"""The frame of each position, and what of its quadratic form goes into the gradient of its logits; a launch each.

Legend: C positions of the chunk, V vocabulary, K kept tokens, F = K + 1 frame vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.kernels.launching import power_of_two
from mce_llm.lm.kernels.row_softmax import RowStatistics
from mce_llm.lm.token_form import TokenForm
from mce_llm.lm.top_tokens import GROUP, top_candidates


@dataclass(frozen=True)
class Frame:
    """What the quadratic forms of a chunk are made of.

    Attributes:
        ids_CF: Tokens, the label first; it may stand there once more.
        kept_CK: The kept tokens alone.
        weights_CF: (1 − ε) q of the kept tokens; that of the label is at the first place only.
        shift_C: The background, ((1 − ε) δ + ε)/d.
        q_CK: Probabilities of the kept tokens.
        tail_C: δ.
    """

    ids_CF: Tensor
    kept_CK: Tensor
    weights_CF: Tensor
    shift_C: Tensor
    q_CK: Tensor
    tail_C: Tensor


def position_settings(kept: int) -> dict[str, int]:
    """Compile-time settings of both programs, but for what is written.

    Args:
        kept: Kept tokens.
    """
    return {"K": power_of_two(kept), "num_warps": 1}


def frame_of(
    logits_CV: Tensor,
    labels_C: Tensor,
    rows: RowStatistics,
    geometry: TokenGeometry,
    config: MatrixLossConfig,
) -> Frame:
    """The frames of the label and the k most probable tokens.

    Args:
        logits_CV: (C, V) float32.
        labels_C: (C,) int64.
        rows: Statistics of the logits, with maxima.
        geometry: The token rows ê, of length one or without direction.
        config: `support` and `shrinkage` are read.
    """
    from mce_llm.lm.kernels.position_program import frame_program

    assert config.support is not None
    kept, positions = config.support, len(labels_C)
    top_logits_CK, places_CK, best_CK = top_candidates(logits_CV, kept, rows.maxima_CG)
    frame = Frame(
        ids_CF=places_CK.new_empty(positions, kept + 1),
        kept_CK=places_CK.new_empty(positions, kept),
        weights_CF=logits_CV.new_empty(positions, kept + 1),
        shift_C=logits_CV.new_empty(positions),
        q_CK=logits_CV.new_empty(positions, kept),
        tail_C=logits_CV.new_empty(positions),
    )
    if positions:
        with torch.cuda.device_of(logits_CV):
            frame_program[(positions,)](
                top_logits_CK,
                places_CK,
                places_CK if best_CK is None else best_CK.contiguous(),
                labels_C.contiguous(),
                rows.largest_C,
                rows.norm_C,
                geometry.scale_V,
                frame.ids_CF,
                frame.kept_CK,
                frame.weights_CF,
                frame.shift_C,
                frame.q_CK,
                frame.tail_C,
                kept,
                logits_CV.shape[1] // GROUP,
                1 - config.epsilon,
                config.epsilon,
                geometry.width,
                GROUP=GROUP,
                GROUPED=best_CK is not None,
                **position_settings(kept),
            )
    return frame


def value_and_factors(
    frame: Frame, form: TokenForm, geometry: TokenGeometry, config: MatrixLossConfig, *, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """MCE of each position, and 1 + λ(g − ⟨q, g⟩) with g = ∂MCE/∂q.

    Args:
        frame: Of the chunk.
        form: Its quadratic forms.
        geometry: The token rows ê.
        config: `weight` and `shrinkage` are read.
        gradient: The factors are wanted; else what stands in their place means nothing.

    Returns:
        MCE, nats, (C,); the factor of all tokens that are not kept, (C,); those of the kept ones, (C, K).
    """
    from mce_llm.lm.kernels.position_program import factor_program

    positions, kept = frame.kept_CK.shape
    value_C, factor_C = (torch.empty_like(frame.tail_C) for _ in range(2))
    kept_factor_CK = torch.empty_like(frame.q_CK)
    if positions:
        with torch.cuda.device_of(value_C):
            factor_program[(positions,)](
                frame.kept_CK,
                geometry.scale_V,
                frame.q_CK,
                frame.tail_C,
                form.value_C,
                form.gradient_CF,
                form.trace_C,
                value_C,
                factor_C,
                kept_factor_CK,
                kept,
                1 - config.epsilon,
                config.epsilon,
                geometry.width,
                float(config.weight),
                GRADIENT=gradient,
                **position_settings(kept),
            )
    return value_C, factor_C, kept_factor_CK
