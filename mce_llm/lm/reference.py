"""The three matrix losses in dense, readable form: the oracle that every faster path is tested against.

Each function writes the density matrices down as they are defined and hands them to
`mce_llm.matrix.matrix_cross_entropy`; gradients come from autograd. Memory is O(T·d² + T·V): use them on small
problems, in float64. Legend: T positions, V vocabulary, D embedding width, K kept tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.matrix.information import matrix_cross_entropy


def token_matrix_cross_entropy(
    logits_TV: Tensor, labels_T: Tensor, geometry: TokenGeometry, config: MatrixLossConfig
) -> Tensor:
    """MCE(ê_y ê_yᵀ, Q_t) = −ê_yᵀ log(Q_t) ê_y + tr Q_t for every position, exactly (no Krylov order).

    Q_t = (1−ε)(Σ_{v in top k} q_tv ê_v ê_vᵀ + δ_t I/d) + ε I/d, where q_t = softmax(logits_t) and δ_t is the mass
    outside the k most probable tokens or on tokens without direction. P carries no shrinkage.

    Args:
        logits_TV: (T, V) logits.
        labels_T: (T,) target ids, none ignored.
        geometry: The token rows ê, constant.
        config: `shrinkage` and `support` are read.

    Returns:
        (T,) losses in nats. A target without direction has P = 0 and the constant loss tr Q_t.
    """
    q_TV = torch.softmax(logits_TV.to(geometry.dtype), dim=-1)
    if config.support is None or config.support >= q_TV.shape[-1]:
        kept_TK = torch.arange(q_TV.shape[-1], device=q_TV.device).expand(q_TV.shape[0], -1)
    else:
        kept_TK = q_TV.detach().topk(config.support, dim=-1).indices
    q_TK = q_TV.gather(-1, kept_TK) * geometry.has_direction_V[kept_TK]
    rows_TKD = geometry.rows(kept_TK)
    signal_TDD = torch.einsum("tk,tkd,tke->tde", q_TK, rows_TKD, rows_TKD)
    predicted_TDD = _with_background(signal_TDD, 1 - q_TK.sum(dim=-1), config.epsilon)
    target_TD = geometry.rows(labels_T)
    target_TDD = target_TD.unsqueeze(-1) * target_TD.unsqueeze(-2)
    return matrix_cross_entropy(target_TDD, predicted_TDD)


def marginal_matrix_cross_entropy(
    logits_TV: Tensor, labels_T: Tensor, geometry: TokenGeometry, config: MatrixLossConfig
) -> Tensor:
    """MCE(ρ(p̄), ρ(q̄)) of the mean target and the mean predicted distribution; a scalar in nats.

    ρ(p) = (1−ε)(Σ_v p_v ê_v ê_vᵀ + δ I/d) + ε I/d with δ the mass on tokens without direction.

    Args:
        logits_TV: (T, V) logits, T ≥ 1.
        labels_T: (T,) target ids, none ignored.
        geometry: The token rows ê, constant.
        config: `shrinkage` is read.

    Returns:
        The loss over all T positions together (not additive over positions).
    """
    q_V = torch.softmax(logits_TV.to(geometry.dtype), dim=-1).mean(dim=0)
    p_V = torch.bincount(labels_T, minlength=q_V.shape[0]).to(q_V) / labels_T.numel()
    return matrix_cross_entropy(
        _marginal_density(p_V, geometry, config), _marginal_density(q_V, geometry, config)
    )


def expected_matrix_cross_entropy(
    logits_TV: Tensor, labels_T: Tensor, geometry: TokenGeometry, config: MatrixLossConfig
) -> Tensor:
    """MCE of the covariance of the targets ê_{y_t} and that of the expectations Σ_v q_tv ê_v; a scalar in nats.

    Both are (1−ε) C + ε I/d with C the biased covariance over the T positions, centred at its own mean.

    Args:
        logits_TV: (T, V) logits, T ≥ 1.
        labels_T: (T,) target ids, none ignored.
        geometry: The token rows ê, constant.
        config: `shrinkage` is read.

    Returns:
        The loss over all T positions together (not additive over positions).
    """
    expected_TD = torch.softmax(logits_TV.to(geometry.dtype), dim=-1) @ geometry.all_rows()
    return matrix_cross_entropy(
        _shrunk_covariance(geometry.rows(labels_T), config), _shrunk_covariance(expected_TD, config)
    )


def reference_matrix_cross_entropy(
    logits_TV: Tensor,
    labels_T: Tensor,
    geometry: TokenGeometry,
    config: MatrixLossConfig,
    ignore_index: int = -100,
) -> Tensor:
    """The matrix loss of `config.kind`: the mean over unmasked positions, or the batch value; nats.

    Args:
        logits_TV: (T, V) logits.
        labels_T: (T,) target ids, already shifted; `ignore_index` is skipped.
        geometry: The token rows ê, constant.
        config: Which loss, and its settings.
        ignore_index: The label that is skipped.

    Returns:
        A scalar; a zero that stays connected to the graph where every label is ignored.
    """
    kept_T = labels_T != ignore_index
    logits_TV, labels_T = logits_TV[kept_T], labels_T[kept_T]
    if labels_T.numel() == 0:
        return logits_TV.sum() * 0.0
    if config.kind == "token":
        return token_matrix_cross_entropy(logits_TV, labels_T, geometry, config).mean()
    if config.kind == "marginal":
        return marginal_matrix_cross_entropy(logits_TV, labels_T, geometry, config)
    return expected_matrix_cross_entropy(logits_TV, labels_T, geometry, config)


def _with_background(signal_DD: Tensor, background: Tensor, epsilon: float) -> Tensor:
    """(1−ε)(S + δ I/d) + ε I/d, batched over the leading dimensions of δ."""
    width = signal_DD.shape[-1]
    eye_DD = torch.eye(width, dtype=signal_DD.dtype, device=signal_DD.device) / width
    return (1 - epsilon) * (signal_DD + background[..., None, None] * eye_DD) + epsilon * eye_DD


def _marginal_density(p_V: Tensor, geometry: TokenGeometry, config: MatrixLossConfig) -> Tensor:
    rows_VD = geometry.all_rows()
    p_V = p_V * geometry.has_direction_V
    return _with_background(rows_VD.T @ (p_V.unsqueeze(-1) * rows_VD), 1 - p_V.sum(), config.epsilon)


def _shrunk_covariance(vectors_TD: Tensor, config: MatrixLossConfig) -> Tensor:
    width = vectors_TD.shape[-1]
    centred_TD = vectors_TD - vectors_TD.mean(dim=0)
    covariance_DD = centred_TD.T @ centred_TD / vectors_TD.shape[0]
    eye_DD = torch.eye(width, dtype=vectors_TD.dtype, device=vectors_TD.device)
    return (1 - config.epsilon) * covariance_DD + config.epsilon * eye_DD / width
