"""Statistics and logit gradients of the `marginal` and `expected` losses, gathered chunk by chunk and over ranks.

Both losses see the whole micro-batch through one d×d matrix, so they take two passes over the positions: the
first gathers statistics, the second turns the gradient of the matrix into gradients of the logits.
Legend: C positions of a chunk, V vocabulary, D embedding width, B rows of a block of the vocabulary, S columns of a
strip of a symmetric matrix.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce

from mce_llm.errors import LossInputError
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.matrix.information import matrix_cross_entropy
from mce_llm.matrix.precision import exact_dtype, full_precision

_BLOCK_ELEMENTS = 2**22  # of the table: bounds the memory of everything that is B×d
# Symmetric matrices are formed and used in strips of columns from the diagonal on, which leaves out nearly half of the
# arithmetic; narrower strips leave out more but make poor products.
_STRIPS = 8
_NARROWEST_STRIP = 64
# Smallest eigenvalue of a density matrix, in units of the products' rounding, at which they need no more digits.
_ROUNDING = 16


class BatchStatistics(Protocol):
    """The interface of a loss over the whole micro-batch to the fused loss."""

    def add(self, probabilities_CV: Tensor, labels_C: Tensor) -> None:
        """First pass: take in one chunk. The probabilities may be overwritten."""

    def finish(self, group: ProcessGroup | None) -> Tensor:
        """Sum over the ranks of `group` (None: this process alone) and return the loss, a scalar in nats."""

    def token_gradient(self, probabilities_CV: Tensor, start: int) -> Tensor:
        """Second pass: N·∂MCE/∂q for the chunk that begins at position `start`; (C, V) or broadcastable to it."""


def batch_statistics(geometry: TokenGeometry, config: MatrixLossConfig) -> BatchStatistics:
    """The statistics that `config.kind` needs; `marginal` or `expected`.

    Raises:
        LossInputError: The device has no float64.
    """
    _require_float64(geometry.table_VD.device)
    if config.kind == "marginal":
        return _Marginal(geometry, config)
    return _Expected(geometry, config)


class _Marginal:
    """ρ of the mean target and of the mean predicted distribution: V numbers each, never V×V."""

    def __init__(self, geometry: TokenGeometry, config: MatrixLossConfig) -> None:
        self._geometry, self._config = geometry, config
        size, device = geometry.table_VD.shape[0], geometry.table_VD.device
        # Rows: Σ_t q_t, the counts of the targets. In float64, because thousands of tiny numbers are summed.
        self._sums_2V = torch.zeros(2, size, dtype=torch.float64, device=device)
        self._gradient_V = torch.empty(0)

    def add(self, probabilities_CV: Tensor, labels_C: Tensor) -> None:
        self._sums_2V[0] += probabilities_CV.sum(dim=0)
        # Not `bincount`, which makes the host wait for the largest label.
        self._sums_2V[1].index_add_(0, labels_C, self._sums_2V.new_ones(len(labels_C)))

    def finish(self, group: ProcessGroup | None) -> Tensor:
        _sum_over_ranks(self._sums_2V, group)
        # The second row counts targets, so it holds the number of positions exactly.
        q_V, p_V = self._sums_2V / self._sums_2V[1].sum().clamp_min(1)
        densities = (marginal_density(d_V, self._geometry, self._config.epsilon) for d_V in (p_V, q_V))
        value, gradient_DD = _value_and_gradient(*densities)
        self._gradient_V = self._row_gradients(gradient_DD)
        return value

    def token_gradient(self, probabilities_CV: Tensor, start: int) -> Tensor:
        return self._gradient_V.to(probabilities_CV.dtype).unsqueeze(0)

    def _row_gradients(self, gradient_DD: Tensor) -> Tensor:
        """g_v = (1−ε) ê_vᵀ G ê_v, or (1−ε) tr(G)/d where the row has no direction."""
        geometry = self._geometry
        gradient_DD = gradient_DD.to(geometry.dtype)
        # ê_vᵀ G ê_v over the upper half alone, the part beside the diagonal twice.
        half_DD = gradient_DD.triu(1).mul_(2)
        half_DD.diagonal().copy_(gradient_DD.diagonal())
        ids_V = torch.arange(geometry.table_VD.shape[0], device=gradient_DD.device)
        g_V = torch.empty_like(ids_V, dtype=geometry.dtype)
        block = _rows_per_block(geometry)
        for ids_B, g_B in zip(ids_V.split(block), g_V.split(block), strict=True):
            rows_BD = geometry.rows(ids_B)
            g_B.zero_()
            for first, last in _strips(geometry.width):
                products_BD = rows_BD[:, first:last] @ half_DD[first:last, first:]
                g_B += products_BD.mul_(rows_BD[:, first:]).sum(dim=-1)
        background = gradient_DD.trace() / geometry.width
        return (1 - self._config.epsilon) * torch.where(geometry.has_direction_V, g_V, background)


def marginal_density(p_V: Tensor, geometry: TokenGeometry, epsilon: float) -> Tensor:
    """ρ(p) = (1−ε)(Σ_v p_v ê_v ê_vᵀ + δ I/d) + ε I/d, with δ the probability on tokens without direction.

    Products are float32 (unless the table is float64) and their sums over blocks float64. A rounded product is off by
    some eps·‖ρ‖, where the smallest eigenvalue is ε/d: with an ε so small that the former could reach the latter, and
    ρ have a negative eigenvalue, products are float64 too.

    Args:
        p_V: (V,) distribution over the vocabulary, float64.
        geometry: The token rows ê.
        epsilon: ε.

    Returns:
        (d, d) in float64.

    Raises:
        LossInputError: The device has no float64.
    """
    _require_float64(p_V.device)
    inside_V = p_V * geometry.has_direction_V
    width = geometry.width
    resolved = epsilon / width >= _ROUNDING * torch.finfo(geometry.dtype).eps
    dtype = geometry.dtype if resolved else torch.float64
    density_DD = torch.zeros(width, width, dtype=torch.float64, device=p_V.device)
    for ids_B in inside_V.nonzero().squeeze(-1).split(_rows_per_block(geometry)):
        rows_BD = geometry.rows(ids_B).to(dtype).mul_(inside_V[ids_B].sqrt().to(dtype).unsqueeze(-1))
        with full_precision(rows_BD):
            for first, last in _strips(width):
                strip_SD = rows_BD[:, first:last].T @ rows_BD[:, first:]
                density_DD[first:last, first:] += strip_SD
    density_DD = density_DD.triu().add_(density_DD.triu(1).T).mul_(1 - epsilon)
    background = (1 - epsilon) * (1 - inside_V.sum()) + epsilon
    density_DD.diagonal().add_(background / width)
    return density_DD


class _Expected:
    """Covariances of the target embeddings and of the expected predicted embeddings."""

    def __init__(self, geometry: TokenGeometry, config: MatrixLossConfig) -> None:
        self._geometry, self._config = geometry, config
        width, device = geometry.width, geometry.table_VD.device
        # A row of ones beside the vectors makes one product hold the sums, the second moments and the count.
        self._moments_2EE = torch.zeros(2, width + 1, width + 1, dtype=torch.float64, device=device)
        self._expected: list[Tensor] = []
        self._gradient_TD = torch.empty(0)

    def add(self, probabilities_CV: Tensor, labels_C: Tensor) -> None:
        expected_CD = self._geometry.combine_(probabilities_CV)
        self._expected.append(expected_CD)
        for moments_EE, vectors_CD in zip(
            self._moments_2EE, (self._geometry.rows(labels_C), expected_CD), strict=True
        ):
            extended_CE = torch.nn.functional.pad(vectors_CD.double(), (0, 1), value=1.0)
            moments_EE.addmm_(extended_CE.T, extended_CE)

    def finish(self, group: ProcessGroup | None) -> Tensor:
        _sum_over_ranks(self._moments_2EE, group)
        (target_DD, _), (predicted_DD, mean_D) = (self._covariance(moments) for moments in self._moments_2EE)
        self._moments_2EE = torch.empty(0)  # memory, for the second pass
        value, gradient_DD = _value_and_gradient(target_DD, predicted_DD)
        if self._expected:
            centred_TD = torch.cat(self._expected) - mean_D.to(self._geometry.dtype)
            self._gradient_TD = 2 * (1 - self._config.epsilon) * (centred_TD @ gradient_DD.to(centred_TD))
        self._expected.clear()
        return value

    def token_gradient(self, probabilities_CV: Tensor, start: int) -> Tensor:
        return self._geometry.project(self._gradient_TD[start : start + probabilities_CV.shape[0]])

    def _covariance(self, moments_EE: Tensor) -> tuple[Tensor, Tensor]:
        """((1−ε) C + ε I/d, mean) from the extended second moments."""
        epsilon, width = self._config.epsilon, self._geometry.width
        moments_EE = moments_EE / moments_EE[-1, -1].clamp_min(1)
        mean_D = moments_EE[-1, :-1]
        covariance_DD = (1 - epsilon) * (moments_EE[:-1, :-1] - torch.outer(mean_D, mean_D))
        covariance_DD.diagonal().add_(epsilon / width)
        return covariance_DD, mean_D


def _require_float64(device: torch.device) -> None:
    if exact_dtype(device) != torch.float64:
        raise LossInputError(
            f"the kinds marginal and expected need float64, which {device.type} devices have not: the smallest eigenvalue, "
            "ε/d, is below what float32 resolves; set matrix_kind to token, or train on the CPU (use_cpu: true)"
        )


def _rows_per_block(geometry: TokenGeometry) -> int:
    return max(1, _BLOCK_ELEMENTS // geometry.width)


def _strips(width: int) -> list[tuple[int, int]]:
    """[first, last) of the columns of each strip."""
    step = max(_NARROWEST_STRIP, -(-width // _STRIPS))
    return [(first, min(first + step, width)) for first in range(0, width, step)]


def _value_and_gradient(target_DD: Tensor, predicted_DD: Tensor) -> tuple[Tensor, Tensor]:
    """MCE(P, Q) and ∂MCE/∂Q, in float64: at ε/d the spectrum of Q is below what float32 resolves."""
    with torch.enable_grad():
        leaf_DD = predicted_DD.detach().requires_grad_()
        value = matrix_cross_entropy(target_DD, leaf_DD, validate=False)
        (gradient_DD,) = torch.autograd.grad(value, leaf_DD)
    return value.detach(), gradient_DD


def _sum_over_ranks(tensor: Tensor, group: ProcessGroup | None) -> None:
    if group is not None:
        all_reduce(tensor, group=group)
