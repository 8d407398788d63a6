"""Earth mover's distance over token embeddings (EMO) as a term of the fused loss: L = (1−w) · CE + w · r · D.

Ren, Wu and Zhu, "EMO: Earth Mover Distance Optimization for Auto-Regressive Language Modeling", ICLR 2024, arXiv
2310.04691, section 3: with the cost C(u, v) = 1 − cos(e_u, e_v) and a one-hot target, the distance is
D = Σ_v q_v C(y, v) = 1 − ⟨ê_y, Σ_v q_v ê_v⟩. It is weighed, for each position, with the factor r = CE/D, through which
no gradient flows; the package EMOLoss 0.0.3 limits r to 3. Legend: C positions of a chunk, V vocabulary, B positions of
a block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mce_llm.lm.chunk_sizes import elements_on
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.loss_terms import Chunk, LossTerm

EMO, DISTANCE = "emo_loss", "emo_distance"
"""The names of its sums: r · D as it stands in the loss, and D."""
_SMALLEST_DISTANCE = 1e-10  # added to D before CE is divided by it, as in the published code
# Elements of a block that is worked on while it is in a cache.
_BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}


def emo_term(geometry: TokenGeometry, config: MatrixLossConfig, like: Tensor) -> LossTerm:
    """The term r · D of each position; D in [0, 2], in units of 1 − cosine.

    A token whose row has no direction (zero, the mean row where rows are centred, or masked) has cost 1 to and from
    every token, as an orthogonal one would. The cost of the target to itself is exactly 0, so that a small D keeps its
    digits.

    Args:
        geometry: The token rows ê of length one, of `emo_directions`.
        config: `emo_weight` and `emo_max_ratio` are read.
        like: A tensor of the dtype and on the device of the sums.
    """
    return _Emo(geometry, config, like)


def emo_directions(config: MatrixLossConfig) -> MatrixLossConfig:
    """The settings of the geometry of EMO: rows always of length one, centred with `emo_center` alone."""
    return replace(config, center=bool(config.emo_center), normalize=True)


def emo_geometry(
    table_VD: Tensor, config: MatrixLossConfig, token_mask: Tensor | None = None
) -> TokenGeometry:
    """The rows ê of EMO: always of length one, centred with `emo_center` alone.

    Args:
        table_VD: (V, d) embedding rows.
        config: `emo_center` is read.
        token_mask: (V,) bool, False for rows that are no tokens.

    Raises:
        GeometryError: A table without usable directions.
    """
    return TokenGeometry.from_table(table_VD, emo_directions(config), token_mask)


class _Emo(LossTerm):
    def __init__(self, geometry: TokenGeometry, config: MatrixLossConfig, like: Tensor) -> None:
        assert config.emo_weight is not None
        self.shares = (1 - config.emo_weight, config.emo_weight)
        self._max_ratio = config.emo_max_ratio or torch.inf
        self._geometry = geometry
        self._sums_2 = like.new_zeros(2)  # Σ r · D, Σ D
        self._costs_CV: Tensor | None = None

    def add(self, chunk: Chunk, gradient: bool) -> None:
        costs_CV = self._costs(chunk.labels_C)
        plain, weight = self.shares
        block = max(1, elements_on(chunk.q_CV.device, _BLOCK_ELEMENTS) // chunk.q_CV.shape[-1])
        for q_BV, costs_BV, cross_entropy_B in zip(
            chunk.q_CV.split(block), costs_CV.split(block), chunk.cross_entropy_C.split(block), strict=True
        ):
            costs_BV = costs_BV.to(q_BV.dtype)
            distance_B = (q_BV * costs_BV).sum(dim=-1)
            ratio_B = (cross_entropy_B / (distance_B + _SMALLEST_DISTANCE)).clamp_max(self._max_ratio)
            self._sums_2 += torch.stack([(ratio_B * distance_B).sum(), distance_B.sum()])
            if gradient:
                # ∂D/∂logits = q ⊙ (cost − D)
                slope_BV = costs_BV.sub_(distance_B.unsqueeze(-1)).mul_((weight * ratio_B).unsqueeze(-1))
                q_BV.mul_(slope_BV.add_(plain))
        if gradient:
            # (1−w) · (q − onehot(y)) is CE's share; the −1 at the label is not ours.
            at_label_C1 = chunk.q_CV.new_full((len(chunk.labels_C), 1), weight)
            chunk.q_CV.scatter_add_(-1, chunk.labels_C.unsqueeze(-1), at_label_C1)

    def sums(self, count: int) -> dict[str, Tensor]:
        return {EMO: self._sums_2[0], DISTANCE: self._sums_2[1]}

    def _costs(self, labels_C: Tensor) -> Tensor:
        """1 − ⟨ê_y, ê_v⟩, (C, V), in a buffer that the next chunk uses again."""
        geometry = self._geometry
        if self._costs_CV is None:
            size = len(labels_C), geometry.table_VD.shape[0]
            self._costs_CV = geometry.mean_D.new_empty(size)
        costs_CV = self._costs_CV[: len(labels_C)]
        geometry.project_centred(geometry.rows(labels_C), out=costs_CV)
        # Rounding takes a cosine beyond 1, and a distance below 0.
        costs_CV.mul_(geometry.scale_V).neg_().add_(1).clamp_min_(0)
        to_itself_C1 = (1 - geometry.squared_length_V[labels_C]).unsqueeze(-1)
        return costs_CV.scatter_(-1, labels_C.unsqueeze(-1), to_itself_C1)
