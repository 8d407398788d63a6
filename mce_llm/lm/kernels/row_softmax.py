"""Softmax of a chunk of logits, and the gradient of the loss in them, by one program a row.

Logits are read once for their statistics and once for the gradient, which is written in the dtype of the products
that it goes into. The probabilities never exist.
Legend: C positions of a chunk, V vocabulary, K kept tokens, G groups of neighbouring tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.lm.kernels.launching import power_of_two
from mce_llm.lm.top_tokens import GROUP

_BLOCK = 4096  # columns that a program has in registers at a time
_WARPS = 8


@dataclass(frozen=True)
class RowStatistics:
    """What is known of each row of logits z after one pass, float32.

    Attributes:
        cross_entropy_C: −log q_y, nats.
        largest_C: max z.
        norm_C: Σ_v exp(z_v − max z).
        maxima_CG: The largest logit of each whole group of neighbours, as `top_tokens` takes them; None where they
            were not asked for.
    """

    cross_entropy_C: Tensor
    largest_C: Tensor
    norm_C: Tensor
    maxima_CG: Tensor | None


def row_statistics(logits_CV: Tensor, labels_C: Tensor, *, maxima: bool) -> RowStatistics:
    """Cross-entropy and what softmax needs, in one pass over the logits.

    Args:
        logits_CV: (C, V) float32, rows consecutive in memory.
        labels_C: (C,) int64 target ids, none ignored.
        maxima: Keep the maxima of groups of neighbours, for `top_tokens`.
    """
    from mce_llm.lm.kernels.row_softmax_program import softmax_program

    positions, size = logits_CV.shape
    groups = size // GROUP
    cross_entropy_C, largest_C, norm_C = (logits_CV.new_empty(positions) for _ in range(3))
    maxima_CG = logits_CV.new_empty(positions, groups) if maxima else None
    if positions:
        with torch.cuda.device_of(logits_CV):
            softmax_program[(positions,)](
                logits_CV,
                labels_C.contiguous(),
                cross_entropy_C,
                largest_C,
                norm_C,
                cross_entropy_C if maxima_CG is None else maxima_CG,
                logits_CV.stride(0),
                size,
                groups,
                GROUP=GROUP,
                MAXIMA=maxima,
                **row_settings(size),
            )
    return RowStatistics(cross_entropy_C, largest_C, norm_C, maxima_CG)


def logit_gradient(
    logits_CV: Tensor,
    labels_C: Tensor,
    statistics: RowStatistics,
    factor_C: Tensor,
    kept_CK: Tensor | None,
    kept_factor_CK: Tensor | None,
    out_CV: Tensor,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """∂L/∂(H Wᵀ + b) = (q ⊙ f − 1 at the label) · ∂z/∂(H Wᵀ + b), where q = softmax(z).

    f is 1 for cross-entropy, and 1 + λ(g − ⟨q, g⟩) with g = ∂MCE/∂q for CE + λ·MCE.

    Args:
        logits_CV: z, (C, V) float32, rows consecutive in memory.
        labels_C: (C,) int64 target ids.
        statistics: Of these logits.
        factor_C: f of all tokens that are not kept, float32.
        kept_CK: Ids of the tokens with an f of their own, int64, none twice in a row; None for none.
        kept_factor_CK: Their f, float32.
        out_CV: Where the result goes, in its dtype, rows consecutive in memory; `logits_CV` itself if it may go.
        logit_scale: Factor that z has been multiplied with.
        softcap: c of the c·tanh(z/c) that z has gone through.

    Returns:
        `out_CV`.
    """
    from mce_llm.lm.kernels.row_softmax_program import gradient_program

    positions, size = logits_CV.shape
    if positions == 0:
        return out_CV
    kept = 0 if kept_CK is None else kept_CK.shape[1]
    settings = row_settings(size)
    with torch.cuda.device_of(logits_CV):
        gradient_program[(positions, -(-size // settings["BLOCK"]))](
            logits_CV,
            labels_C.contiguous(),
            statistics.largest_C,
            statistics.norm_C,
            factor_C.contiguous(),
            labels_C if kept_CK is None else kept_CK.contiguous(),
            factor_C if kept_factor_CK is None else kept_factor_CK.contiguous(),
            out_CV,
            logits_CV.stride(0),
            out_CV.stride(0),
            size,
            kept,
            float(logit_scale),
            1.0 if softcap is None else float(softcap),
            K=power_of_two(kept) if kept else 0,
            CAPPED=softcap is not None,
            **settings,
        )
    return out_CV


def row_settings(size: int) -> dict[str, int]:
    """Compile-time settings that both programs share.

    Args:
        size: V.
    """
    return {"BLOCK": min(_BLOCK, max(GROUP, power_of_two(size))), "num_warps": _WARPS}
