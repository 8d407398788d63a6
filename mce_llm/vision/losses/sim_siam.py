"""Negative cosine similarity of predictions with constant targets, as in SimSiam and BYOL."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from mce_llm.vision.losses.base import ViewLoss
from mce_llm.vision.losses.rows import checked_numbers, unit_rows, whole_batch


class SimSiamLoss(ViewLoss):
    """−½ (mean_i cos(z1_i, p2_i) + mean_i cos(z2_i, p1_i)), from −1 to 1, without unit.

    z are predictions, p the targets of the other view and constants: the student's own projections in SimSiam, a
    teacher's in BYOL. The mean is over the rows of the whole batch. Source: Chen, He, *Exploring Simple Siamese
    Representation Learning*, CVPR 2021, arXiv 2011.10566, equations 1 to 4, where p and z are named the other way
    round.

    In the language of matrix information it is the first-order term of maximum entropy coding,
    −(λ⁻¹/m) tr(λ PᵀZ), that is `MECLoss(order=1)`: alignment without uniformity, so that nothing but the predictor
    and the constant target stands against collapse.

    Components: "loss", "cosine" (its negative).

    Args:
        gather: As in `ViewLoss`.
        validate: As in `ViewLoss`.
        process_group: As in `ViewLoss`.
    """

    needs_teacher: ClassVar[bool] = True

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self._check([])

    def components(
        self, z1: Tensor, z2: Tensor, p1: Tensor | None = None, p2: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss and the cosine; see the class.

        Args:
            z1: (m, d), predictions of the first view, bfloat16 to float64.
            z2: (m, d), of the second.
            p1: (m, d), targets of the first view.
            p2: (m, d), of the second.

        Returns:
            Scalars by name, in float32, or float64 where rows are.

        Raises:
            LossInputError: Rows are missing, of unequal shapes, zero, or fewer than two.
            NonFiniteLossError: Rows or the loss are not finite.
            RankMismatchError: Processes brought rows that do not fit together.
        """
        name = type(self).__name__
        given = {"z1": z1, "z2": z2, "p1": p1, "p2": p2}
        rows = whole_batch(name, given, constant=("p1", "p2"), gather=self.gather, group=self.process_group)
        first, second, target1, target2 = (unit_rows(tensor) for tensor in rows)
        loss = -((first * target2).sum(1) + (second * target1).sum(1)).mean() / 2
        if self.validate:
            checked_numbers(name, tuple(given), rows, loss)
        return {"loss": loss, "cosine": -loss.detach()}


def sim_siam_loss(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, **options: Any) -> Tensor:
    """`SimSiamLoss` as a function.

    Args:
        z1: (m, d), predictions of the first view.
        z2: (m, d), of the second.
        p1: (m, d), targets of the first view, constants.
        p2: (m, d), of the second.
        options: Those of `SimSiamLoss`.

    Returns:
        The scalar loss.
    """
    return SimSiamLoss(**options)(z1, z2, p1, p2)
