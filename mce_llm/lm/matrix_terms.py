"""Matrix cross-entropy as a term of the fused loss: L = CE + λ · MCE, for each kind of density matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from mce_llm.lm.batch_kernel import batch_statistics
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.loss_terms import Chunk, LossTerm
from mce_llm.lm.token_kernel import into_logit_gradient, token_chunk

MATRIX = "mce_loss"
"""The name of its sum."""


def matrix_term(
    geometry: TokenGeometry, config: MatrixLossConfig, like: Tensor, *, details: bool
) -> LossTerm:
    """The term of `config.kind`, with weight λ = `config.weight`.

    Args:
        geometry: The token rows.
        config: The settings.
        like: A tensor of the dtype and on the device of the sums.
        details: Report what the approximations of the kind `token` cost.
    """
    if config.kind == "token":
        return _Token(geometry, config, like, details)
    return _Batch(geometry, config)


class _Token(LossTerm):
    """Additive over positions: one pass."""

    def __init__(
        self, geometry: TokenGeometry, config: MatrixLossConfig, like: Tensor, details: bool
    ) -> None:
        self.shares = (1.0, config.weight)
        self._geometry, self._config, self._details = geometry, config, details
        self._sums_3 = like.new_zeros(3)  # Σ MCE, Σ δ, Σ gap

    def add(self, chunk: Chunk, gradient: bool) -> None:
        found = token_chunk(
            chunk.q_CV,
            chunk.labels_C,
            self._geometry,
            self._config,
            gradient=gradient,
            gap=self._details,
        )
        self._sums_3[0] += found.value_C.sum()
        if found.gap_C is not None:
            self._sums_3[1:] += torch.stack([found.tail_mass_C.sum(), found.gap_C.sum()])

    def sums(self, count: int) -> dict[str, Tensor]:
        return {MATRIX: self._sums_3[0]}

    def means(self, count: int) -> dict[str, Tensor]:
        if not self._details:
            return {}
        tail_mass, gap = self._sums_3[1:] / max(count, 1)
        return {"tail_mass": tail_mass, "quadrature_gap": gap}


class _Batch(LossTerm):
    """A statistic of the whole micro-batch, on all the ranks: two passes."""

    two_passes = True

    def __init__(self, geometry: TokenGeometry, config: MatrixLossConfig) -> None:
        self.shares = (1.0, config.weight)
        self._statistics = batch_statistics(geometry, config)
        self._value = torch.empty(())

    def gather(self, q_CV: Tensor, labels_C: Tensor) -> None:
        self._statistics.add(q_CV, labels_C)

    def finish(self, group: ProcessGroup | None) -> None:
        self._value = self._statistics.finish(group)

    def add(self, chunk: Chunk, gradient: bool) -> None:
        if gradient:
            g_CV = self._statistics.token_gradient(chunk.q_CV, chunk.start)
            into_logit_gradient(chunk.q_CV, g_CV, self.shares[1])

    def sums(self, count: int) -> dict[str, Tensor]:
        # One value for the micro-batch; this process answers for its share of the tokens.
        return {MATRIX: self._value * count}
