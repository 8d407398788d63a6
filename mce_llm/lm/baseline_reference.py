"""Whole losses, and those that the matrix loss is compared with, in dense, readable form: the oracle of the fused ones.

Gradients come from autograd, memory is O(T·V + V·D): use them on small problems, in float64. Legend: T positions, V
vocabulary, D embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.emo_term import emo_geometry
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.reference import reference_matrix_cross_entropy


def label_smoothing_loss(
    logits_TV: Tensor, labels_T: Tensor, smoothing: float, token_mask: Tensor | None = None
) -> Tensor:
    """−(1−s) log q_y − s/n Σ_v log q_v for every position, with q = softmax(logits) and the sum over n tokens.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7. Without a mask it is
    `torch.nn.functional.cross_entropy(label_smoothing=s)`. With one, q is still a distribution over all V rows, and only
    the rows that are tokens have a share of the uniform target.

    Args:
        logits_TV: (T, V) logits.
        labels_T: (T,) target ids, none ignored.
        smoothing: s.
        token_mask: (V,) bool, False for rows that are no tokens; None for all True.

    Returns:
        (T,) losses in nats.
    """
    log_q_TV = torch.log_softmax(logits_TV, dim=-1)
    tokens_TV = log_q_TV if token_mask is None else log_q_TV[:, token_mask]
    at_label_T = log_q_TV.gather(-1, labels_T.unsqueeze(-1)).squeeze(-1)
    return -(1 - smoothing) * at_label_T - smoothing * tokens_TV.mean(dim=-1)


def earth_mover_distance(logits_TV: Tensor, labels_T: Tensor, geometry: TokenGeometry) -> Tensor:
    """D = 1 − ⟨ê_y, Σ_v q_v ê_v⟩ for every position: the mean cost 1 − cos of moving q = softmax(logits) to the target.

    Args:
        logits_TV: (T, V) logits.
        labels_T: (T,) target ids, none ignored.
        geometry: The token rows ê of length one, constant; see `emo_geometry`.

    Returns:
        (T,) distances in [0, 2].
    """
    q_TV = torch.softmax(logits_TV.to(geometry.dtype), dim=-1)
    costs_TV = 1 - geometry.rows(labels_T) @ geometry.all_rows().T
    # Exactly 0 for the target itself: 1 − cos would leave a rounding error that is large beside a small D.
    to_itself_T1 = (1 - geometry.squared_length_V[labels_T]).unsqueeze(-1)
    return (q_TV * costs_TV.scatter(-1, labels_T.unsqueeze(-1), to_itself_T1)).sum(dim=-1)


def earth_mover_loss(
    logits_TV: Tensor, labels_T: Tensor, geometry: TokenGeometry, config: MatrixLossConfig
) -> Tensor:
    """(1−w)·CE + w·r·D for every position, with the factor r = min(CE/D, c), a constant for the gradient.

    Ren, Wu and Zhu, ICLR 2024, arXiv 2310.04691, with w = 1/2; the limit c is that of their package EMOLoss 0.0.3.

    Args:
        logits_TV: (T, V) logits.
        labels_T: (T,) target ids, none ignored.
        geometry: The token rows ê of length one, constant; see `emo_geometry`.
        config: `emo_weight` and `emo_max_ratio` are read.

    Returns:
        (T,) losses in nats.
    """
    assert config.emo_weight is not None
    cross_entropy_T = F.cross_entropy(logits_TV.to(geometry.dtype), labels_T, reduction="none")
    distance_T = earth_mover_distance(logits_TV, labels_T, geometry)
    ratio_T = (cross_entropy_T / (distance_T + 1e-10)).detach()
    if config.emo_max_ratio:
        ratio_T = ratio_T.clamp_max(config.emo_max_ratio)
    return (1 - config.emo_weight) * cross_entropy_T + config.emo_weight * ratio_T * distance_T


def reference_loss(
    logits_TV: Tensor,
    labels_T: Tensor,
    table_VD: Tensor,
    config: MatrixLossConfig,
    token_mask: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """The loss that `config.loss` names, whole: the mean over unmasked positions (or CE + λ · the batch value), in nats.

    Args:
        logits_TV: (T, V) logits.
        labels_T: (T,) target ids, already shifted; `ignore_index` is skipped.
        table_VD: (V, d) embedding rows of the token geometry, constant.
        config: Which loss, and its settings.
        token_mask: (V,) bool, False for rows that are no tokens; None for all True.
        ignore_index: The label that is skipped.

    Returns:
        A scalar; a zero that stays connected to the graph where every label is ignored.
    """
    kept_T = labels_T != ignore_index
    logits_TV, labels_T = logits_TV[kept_T], labels_T[kept_T]
    if labels_T.numel() == 0:
        return logits_TV.sum() * 0.0
    if config.objective == "label_smoothing":
        assert config.smoothing is not None
        return label_smoothing_loss(logits_TV, labels_T, config.smoothing, token_mask).mean()
    if config.objective == "emo":
        return earth_mover_loss(
            logits_TV, labels_T, emo_geometry(table_VD, config, token_mask), config
        ).mean()
    cross_entropy = F.cross_entropy(logits_TV, labels_T)
    if config.objective == "ce":
        return cross_entropy
    geometry = TokenGeometry.from_table(table_VD, config, token_mask)
    return cross_entropy + config.weight * reference_matrix_cross_entropy(
        logits_TV, labels_T, geometry, config
    )
