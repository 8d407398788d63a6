"""Barlow Twins: the cross-correlation of two views should be the identity."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from mce_llm.matrix import full_precision_product
from mce_llm.vision.losses.base import ViewLoss
from mce_llm.vision.losses.rows import centred, checked_numbers, whole_batch
from mce_llm.vision.losses.settings import not_negative, positive


class BarlowTwinsLoss(ViewLoss):
    """s · (Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij²), a sum over entries, without unit.

    C = Z1ᵀZ2/m is the cross-correlation of columns standardised over the whole batch (variance with 1/m, plus 1e-5
    as in batch norm). It takes z1 and z2 alone, both with gradients, and ignores p1 and p2. Source: Zbontar, Jing,
    Misra, LeCun, Deny, *Barlow Twins*, ICML 2021, arXiv 2103.03230, equation 1; its λ is 0.0051, and the authors'
    first code scaled the loss by 0.024.

    In the language of matrix information it is maximum entropy coding to second order: for symmetric C,
    −tr log₂(I + C) = −tr C + ½ tr C², and with λ = 1 the loss is ‖C − I‖_F² = d + 2(−tr C + ½ ‖C‖_F²), twice that
    plus d. With λ < 1 the off-diagonal part, which is what keeps the dimensions apart, counts less.

    Components: "loss", "invariance" (the diagonal part), "redundancy" (the other), which add up to it.

    Args:
        lam: λ > 0.
        scale: s > 0.
        gather: As in `ViewLoss`.
        validate: As in `ViewLoss`.
        process_group: As in `ViewLoss`.
    """

    def __init__(
        self,
        lam: float = 0.0051,
        scale: float = 1.0,
        *,
        gather: bool = True,
        validate: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather=gather, validate=validate, process_group=process_group)
        self._check(
            [
                *not_negative("lam", lam, "0.0051 is the paper's"),
                *positive("scale", scale, "1 is the paper's"),
            ]
        )
        self.lam, self.scale = lam, scale

    def extra_repr(self) -> str:
        """The settings."""
        return f"lam={self.lam!r}, scale={self.scale!r}"

    def components(
        self, z1: Tensor, z2: Tensor, p1: Tensor | None = None, p2: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss and its parts; see the class.

        Args:
            z1: (m, d), rows of the first view, bfloat16 to float64.
            z2: (m, d), of the second.
            p1: Ignored.
            p2: Ignored.

        Returns:
            Scalars by name, in float32, or float64 where rows are.

        Raises:
            LossInputError: Rows are of unequal shapes, or fewer than two.
            NonFiniteLossError: Rows or the loss are not finite.
            RankMismatchError: Processes brought rows that do not fit together.
        """
        name = type(self).__name__
        rows = whole_batch(name, {"z1": z1, "z2": z2}, gather=self.gather, group=self.process_group)
        first, second = (standardised(tensor) for tensor in rows)
        count, dim = first.shape
        diagonal = (first * second).sum(0) / count
        # ‖C‖_F² = ⟨Z1 Z1ᵀ, Z2 Z2ᵀ⟩/m² from the smaller matrices.
        if count < dim:
            grams = (full_precision_product(view, view.T) / count for view in (first, second))
            total = (next(grams) * next(grams)).sum()
        else:
            total = (full_precision_product(first.T, second) / count).square().sum()
        invariance = self.scale * (1 - diagonal).square().sum()
        redundancy = self.scale * self.lam * (total - diagonal.square().sum())
        loss = invariance + redundancy
        if self.validate:
            checked_numbers(name, ("z1", "z2"), rows, loss, zero_rows=True)
        return {"loss": loss, "invariance": invariance.detach(), "redundancy": redundancy.detach()}


def standardised(rows: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1 (divided by √(variance + 1e-5)).

    Args:
        rows: (m, d).

    Returns:
        (m, d).
    """
    centre = centred(rows)
    return centre * (centre.square().mean(0) + 1e-5).rsqrt()


def barlow_twins_loss(z1: Tensor, z2: Tensor, **options: Any) -> Tensor:
    """`BarlowTwinsLoss` as a function.

    Args:
        z1: (m, d), rows of the first view.
        z2: (m, d), of the second.
        options: Those of `BarlowTwinsLoss`.

    Returns:
        The scalar loss.
    """
    return BarlowTwinsLoss(**options)(z1, z2)
