"""Total coding rate with an invariance term: the symmetric relative of maximum entropy coding."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mce_llm.matrix import full_precision
from mce_llm.matrix.first_order import with_gradient
from mce_llm.vision.losses.base import ViewLoss
from mce_llm.vision.losses.products import symmetric_product
from mce_llm.vision.losses.rows import checked_numbers, unit_rows, whole_batch
from mce_llm.vision.losses.settings import not_negative, positive


class TotalCodingRateLoss(ViewLoss):
    """−½ Σ_v R(Z_v) − w · mean_i cos(z_i, z̄_i) over the two views v, in nats.

    R(Z) = ½ log det(I + d/(m ε²) ZᵀZ) is the total coding rate of unit rows, m those of the whole batch; z̄_i is the
    mean of both views of image i, and the cosine is averaged over the views too. It takes z1 and z2 alone, both with
    gradients, and ignores p1 and p2. Sources: for R, Yu et al., *Learning Diverse and Discriminative Representations
    via the Principle of Maximal Coding Rate Reduction*, NeurIPS 2020, arXiv 2006.08558; for the loss, Tong, Chen, Ma,
    LeCun, *EMP-SSL*, arXiv 2304.03977, whose code has ε² = 0.2 and w = 200, for many more than two views.

    In the language of matrix information R(Z) is half of tr log Q with Q = I + d/(m ε²) ZᵀZ, so −R is matrix
    uniformity MCE(I/2, Q) less its trace term, of each view with itself; the views are aligned by the cosine, not by
    the cross-covariance as in `MatrixSSLLoss` and `MECLoss`.

    Components: "loss", "uniformity" (−½ Σ R), "invariance" (−w · mean cosine), which add up to it.

    Args:
        distortion: ε² > 0.
        invariance: w >= 0.
        gather: As in `ViewLoss`.
        validate: As in `ViewLoss`.
        process_group: As in `ViewLoss`.
    """

    def __init__(
        self,
        distortion: float = 0.2,
        invariance: float = 200.0,
        *,
        gather: bool = True,
        validate: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather=gather, validate=validate, process_group=process_group)
        self._check(
            [
                *positive("distortion", distortion, "0.2 is the usual choice"),
                *not_negative("invariance", invariance, "200 is the usual choice"),
            ]
        )
        self.distortion, self.invariance = distortion, invariance

    def extra_repr(self) -> str:
        """The settings."""
        return f"distortion={self.distortion!r}, invariance={self.invariance!r}"

    def components(
        self, z1: Tensor, z2: Tensor, p1: Tensor | None = None, p2: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss and its terms; see the class.

        Args:
            z1: (m, d), rows of the first view, bfloat16 to float64.
            z2: (m, d), of the second.
            p1: Ignored.
            p2: Ignored.

        Returns:
            Scalars by name, in float32, or float64 where rows are.

        Raises:
            LossInputError: Rows are of unequal shapes, zero, or fewer than two.
            NonFiniteLossError: Rows or the loss are not finite.
            RankMismatchError: Processes brought rows that do not fit together.
        """
        name = type(self).__name__
        rows = whole_batch(name, {"z1": z1, "z2": z2}, gather=self.gather, group=self.process_group)
        first, second = (unit_rows(tensor) for tensor in rows)
        scale = first.shape[1] / (len(first) * self.distortion)
        rate1, gradient1 = coding_rate(first, scale)
        rate2, gradient2 = coding_rate(second, scale)
        uniformity = with_gradient(-(rate1 + rate2) / 2, first, -gradient1 / 2, second, -gradient2 / 2)
        middle = unit_rows((first + second) / 2)
        cosine = ((first + second) * middle).sum(1).mean() / 2
        invariance = -self.invariance * cosine
        loss = uniformity + invariance
        if self.validate:
            checked_numbers(name, ("z1", "z2"), rows, loss)
        return {"loss": loss, "uniformity": uniformity.detach(), "invariance": invariance.detach()}


@torch.no_grad()
def coding_rate(rows: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """R = ½ log det(I + s ZᵀZ) and its gradient s (I + s ZZᵀ)⁻¹ Z, through the smaller of the two Gram matrices.

    Args:
        rows: Z, (m, d), float32 or float64.
        scale: s > 0.

    Returns:
        The rate in nats, and (m, d). NaN for rows that are not finite.
    """
    with full_precision(rows):
        small = rows.shape[0] <= rows.shape[1]
        gram = symmetric_product(rows, rows.T) if small else symmetric_product(rows.T, rows)
        gram.mul_(scale).diagonal().add_(1)
        factor = torch.linalg.cholesky_ex(gram).L
        rate = factor.diagonal().log().sum()
        solved = torch.cholesky_solve(rows if small else rows.T, factor)
        return rate, (solved if small else solved.T) * scale


def total_coding_rate_loss(z1: Tensor, z2: Tensor, **options: Any) -> Tensor:
    """`TotalCodingRateLoss` as a function.

    Args:
        z1: (m, d), rows of the first view.
        z2: (m, d), of the second.
        options: Those of `TotalCodingRateLoss`.

    Returns:
        The scalar loss in nats.
    """
    return TotalCodingRateLoss(**options)(z1, z2)
