"""Maximum entropy coding: the log det of how teacher and student correlate. The arithmetic is in `terms`."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from mce_llm.matrix import full_precision
from mce_llm.matrix.first_order import with_gradient
from mce_llm.vision.losses.base import ViewLoss
from mce_llm.vision.losses.convergence import ON_DIVERGENCE, measured_radius, must_be_exact
from mce_llm.vision.losses.errors import LossSettingsError, NegativeDeterminantError
from mce_llm.vision.losses.logarithms import ExactLog, Logarithm, TaylorLog
from mce_llm.vision.losses.rows import checked_numbers, unit_rows, whole_batch
from mce_llm.vision.losses.settings import choice, not_negative, order_of_series, positive
from mce_llm.vision.losses.terms import FORMS, PairTerms, Weights, pair_terms

_NAMES = ("z1", "z2", "p1", "p2")


class MECLoss(ViewLoss):
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
    larger; for the Taylor series "taylor_radius", a bound on the spectral radius of λ PᵀZ.

    Args:
        distortion: ε² > 0.
        order: k >= 1, terms of the Taylor series; not used by `log="exact"`.
        log: "taylor", or "exact" for log|det|; a determinant that is not positive is refused.
        form: "gram" (m×m matrices), "dim" (d×d), or "auto" for the cheaper.
        on_divergence: "raise" an error, take the "exact" logarithm for that batch, or "ignore" it. Only looked at
            with `validate`.
        warmup_epochs: Over how many epochs λ⁻¹ falls; 0 for none. Otherwise `set_epoch` has to be called before each
            step.
        warmup_factor: By how much λ⁻¹ is larger at the start.
        gather: As in `ViewLoss`.
        validate: As in `ViewLoss`.
        process_group: As in `ViewLoss`.
    """

    needs_teacher: ClassVar[bool] = True

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
        super().__init__(gather=gather, validate=validate, process_group=process_group)
        problems = [
            *positive("distortion", distortion, "64 is the published code's"),
            *order_of_series("order", order),
            *choice("log", log, ("taylor", "exact")),
            *choice("form", form, FORMS),
            *choice("on_divergence", on_divergence, ON_DIVERGENCE),
            *not_negative("warmup_epochs", warmup_epochs, "10 is the published code's, 0 for none"),
            *positive("warmup_factor", warmup_factor, "8 is the published code's"),
        ]
        if on_divergence == "exact" and not validate:
            problems.append(
                "on_divergence='exact' needs validate=true: without it nobody looks whether the series diverges"
            )
        self._check(problems)
        self.distortion, self.order, self.log, self.form = distortion, order, log, form
        self.on_divergence = on_divergence
        self.warmup_epochs, self.warmup_factor = warmup_epochs, warmup_factor
        self._exact = ExactLog(1.0)
        self._logarithm: Logarithm = TaylorLog(order, 1.0) if log == "taylor" else self._exact

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

    def components(
        self, z1: Tensor, z2: Tensor, p1: Tensor | None = None, p2: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss, the coding length and the radius; see the class.

        Args:
            z1: (m, d), the student's rows of the first view, bfloat16 to float64.
            z2: (m, d), of the second.
            p1: (m, d), the teacher's rows of the first view.
            p2: (m, d), of the second.

        Returns:
            Scalars by name, in float32, or float64 where rows are.

        Raises:
            LossInputError: Rows are missing, of unequal shapes, zero, or fewer than two.
            NonFiniteLossError: Rows or the loss are not finite.
            TaylorDivergenceError: The series does not converge and `on_divergence` is "raise".
            NegativeDeterminantError: The exact log det does not exist.
            RankMismatchError: Processes brought rows that do not fit together.
            LossSettingsError: There is a warm-up and `set_epoch` was never called.
        """
        given = {"z1": z1, "z2": z2, "p1": p1, "p2": p2}
        rows = whole_batch(
            type(self).__name__, given, constant=("p1", "p2"), gather=self.gather, group=self.process_group
        )
        first, second, teacher1, teacher2 = (unit_rows(tensor) for tensor in rows)
        count, dim = first.shape
        inverse = self.inverse_lambda(count, dim)
        pairs = [(teacher2, first), (teacher1, second)]
        terms = self._terms(pairs, self._logarithm, inverse)
        radius = torch.stack([pair.cross_radius for pair in terms]).amax()
        if self.validate:
            bound = self._checked_radius(rows, terms, self._logarithm, radius)
            if bound >= 1 and self.on_divergence != "ignore" and self._must_be_exact(pairs, inverse):
                terms = self._terms(pairs, self._exact, inverse)
                self._checked_radius(rows, terms, self._exact, radius)
        value = terms[0].value + terms[1].value
        parts = {
            "loss": with_gradient(value, first, terms[0].gradient, second, terms[1].gradient),
            "coding_length": -value * (count + dim) / (2 * inverse),
        }
        if self.log == "taylor":
            parts["taylor_radius"] = radius
        return parts

    @torch.no_grad()
    def _terms(self, pairs: list[tuple[Tensor, Tensor]], log: Logarithm, inverse: float) -> list[PairTerms]:
        weights = Weights(cross=inverse / len(pairs[0][0]) / 2)
        with full_precision(pairs[0][0]):
            return [pair_terms(P, Z, 1 / inverse, log, weights, self.form) for P, Z in pairs]

    def _checked_radius(
        self, rows: list[Tensor], terms: list[PairTerms], log: Logarithm, radius: Tensor
    ) -> float:
        """Refuse what cannot be trained on, and read the bound on the radius."""
        no_log_det = NegativeDeterminantError(
            f"{type(self).__name__}: det(I + λ PᵀZ) is not positive, so its logarithm does not exist: student and "
            f"teacher point opposite ways; use a larger distortion (now {self.distortion:g}) or log='taylor'"
        )
        (bound,) = checked_numbers(
            type(self).__name__,
            _NAMES,
            rows,
            terms[0].value + terms[1].value,
            [radius],
            otherwise=no_log_det if isinstance(log, ExactLog) else None,
        )
        return bound

    def _must_be_exact(self, pairs: list[tuple[Tensor, Tensor]], inverse: float) -> bool:
        suspects = [
            (f"λ PᵀZ of pair {number}", partial(measured_radius, P, Z, 1 / inverse, 0.0))
            for number, (P, Z) in enumerate(pairs, 1)
        ]
        remedy = f"Use a larger distortion (now {self.distortion:g}) or a longer or higher warm-up"
        return must_be_exact(type(self).__name__, suspects, self.on_divergence, remedy)


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
