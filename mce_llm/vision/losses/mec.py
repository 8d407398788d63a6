"""Maximum entropy coding: the log det of how teacher and student correlate. How it is computed is in `pairs` and `terms`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mce_llm.vision.losses.convergence import measured_radius
from mce_llm.vision.losses.errors import LossSettingsError
from mce_llm.vision.losses.pairs import Pair, PairedLogLoss
from mce_llm.vision.losses.settings import not_negative, positive
from mce_llm.vision.losses.terms import PairTerms, Weights


class MECLoss(PairedLogLoss):
    """Maximum entropy coding: −(λ⁻¹/m) tr log(I + λ PᵀZ), averaged over (p2, z1) and (p1, z2), in nats.

    Rows are divided by their norms, not centred; the teacher's rows are constants. λ⁻¹ = m ε²/d with m the rows of the
    whole batch: λ is the paper's d/(m ε²), ε² the allowed decoding error (`distortion`, 64 in the published code). The
    factor λ⁻¹/m in front is the published code's, in place of the paper's (m + d)/2; it makes the size of the gradient
    independent of λ. The logarithm is its Taylor series of the given order, or exact. Source: Liu, Wang, Li, Wang,
    *Self-Supervised Learning via Maximum Entropy Coding*, NeurIPS 2022, arXiv 2210.11464, equation 2.

    In the language of matrix information it is matrix uniformity, MCE(I, I + λ PᵀZ) less its trace term: with
    `distortion` = d and centred rows it equals the uniformity term of `MatrixSSLLoss` (μ = λ = 1). At order 1 it is
    `SimSiamLoss`; at order 2, for standardised columns in place of unit rows, `BarlowTwinsLoss` with equal weights.

    The series needs the spectral radius of λ PᵀZ to be below 1, and rows that have a large common direction, as at the
    start of training, are beyond it. The published code begins with λ⁻¹ larger by a factor of 8 that falls linearly
    to 1 over 10 epochs (`warmup_factor`, `warmup_epochs`). Where that does not suffice it trains on the truncated
    series, whose last term still pushes large eigenvalues down; so does this class unless `on_divergence` says
    otherwise. "taylor_radius" shows where one stands.

    Components: "loss"; "coding_length", (m + d)/2 · log det(I + λ PᵀZ)/m, nats for each sample, which training makes
    larger; for the Taylor series "taylor_radius", a bound on the spectral radius of λ PᵀZ; "floored_eigenvalues" (of
    I + λ PᵀZ) and "exact_logarithm" as in `MatrixSSLLoss`.

    Args:
        distortion: ε² > 0.
        order: k >= 1, terms of the Taylor series; not used by `log="exact"`.
        log: "taylor", or "exact" for log det, with a floor of 0.1 for eigenvalues as in `MatrixSSLLoss`.
        form: "gram" (m×m matrices), "dim" (d×d), or "auto" for the cheaper.
        on_divergence: "raise" an error, take the "exact" logarithm from that batch on, or "ignore" it. Only looked at
            with `validate`.
        warmup_epochs: Over how many epochs λ⁻¹ falls; 0 for none. Otherwise `set_epoch` has to be called before each
            step.
        warmup_factor: By how much λ⁻¹ is larger at the start.
        gather: As in `ViewLoss`.
        validate: As in `ViewLoss`.
        process_group: As in `ViewLoss`.
    """

    def __init__(
        self,
        distortion: float = 64.0,
        order: int = 4,
        log: str = "taylor",
        form: str = "auto",
        on_divergence: str = "ignore",
        warmup_epochs: float = 0.0,
        warmup_factor: float = 8.0,
        *,
        gather: bool = True,
        validate: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            order, log, form, on_divergence, gather=gather, validate=validate, process_group=process_group
        )
        self._check(
            [
                *positive("distortion", distortion, "64 is the published code's"),
                *not_negative("warmup_epochs", warmup_epochs, "10 is the published code's, 0 for none"),
                *positive("warmup_factor", warmup_factor, "8 is the published code's"),
            ]
        )
        self.distortion = distortion
        self.warmup_epochs, self.warmup_factor = warmup_epochs, warmup_factor
        self._choose_logarithm(mu=1.0)

    def extra_repr(self) -> str:
        """The settings."""
        names = (
            "distortion",
            "order",
            "log",
            "form",
            "on_divergence",
            "warmup_epochs",
            "warmup_factor",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def inverse_lambda(self, rows: int, dim: int) -> float:
        """λ⁻¹ = m ε²/d, times what is left of the warm-up.

        Args:
            rows: m, of the whole batch.
            dim: d.

        Returns:
            The number that products of rows are divided by.

        Raises:
            LossSettingsError: There is a warm-up, and nobody said which epoch it is.
        """
        factor = 1.0
        if self.warmup_epochs:
            if self.epoch is None:
                raise LossSettingsError(
                    f"{type(self).__name__}: with warmup_epochs = {self.warmup_epochs:g}, set_epoch has to be called before "
                    "each step, or the warm-up never ends; warmup_epochs=0 goes without"
                )
            done = min(1.0, max(0.0, self.epoch / self.warmup_epochs))
            factor = self.warmup_factor + (1.0 - self.warmup_factor) * done
        return rows * self.distortion / dim * factor

    def _scale_and_weights(self, rows: int, dim: int) -> tuple[float, Weights]:
        inverse = self.inverse_lambda(rows, dim)
        return 1 / inverse, Weights(cross=inverse / rows / 2)

    def _radius_bound(self, terms: list[PairTerms]) -> Tensor:
        return torch.stack([pair.cross_radius for pair in terms]).amax()

    def _suspects(self, number: int, pair: Pair, scale: float) -> list[tuple[str, Callable[[], float]]]:
        return [(f"λ PᵀZ of pair {number}", partial(measured_radius, *pair, scale, 0.0))]

    def _parts(self, terms: list[PairTerms], rows: int, dim: int) -> dict[str, Tensor]:
        value = terms[0].value + terms[1].value
        return {"coding_length": -value * (rows + dim) / (2 * self.inverse_lambda(rows, dim))}

    def _remedy(self) -> str:
        return f"Use a larger distortion (now {self.distortion:g}) or a longer or higher warm-up"


def mec_loss(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, **options: Any) -> Tensor:
    """`MECLoss` as a function.

    Args:
        z1: (m, d), the student's rows of the first view.
        z2: (m, d), of the second.
        p1: (m, d), the teacher's rows of the first view, a constant.
        p2: (m, d), of the second.
        options: Those of `MECLoss`.

    Returns:
        The scalar loss in nats, mean over the two pairs.
    """
    return MECLoss(**options)(z1, z2, p1, p2)
