"""The Matrix-SSL loss, as published in code and as in the paper. The arithmetic is in `terms`."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from mce_llm.matrix import full_precision
from mce_llm.matrix.first_order import with_gradient
from mce_llm.vision.losses.base import ViewLoss
from mce_llm.vision.losses.convergence import (
    ON_DIVERGENCE,
    covariance_bound,
    cross_bound,
    measured_radius,
    must_be_exact,
)
from mce_llm.vision.losses.errors import NegativeDeterminantError
from mce_llm.vision.losses.logarithms import ExactLog, Logarithm, TaylorLog
from mce_llm.vision.losses.rows import centred, checked_numbers, unit_rows, whole_batch
from mce_llm.vision.losses.settings import choice, not_negative, order_of_series, positive
from mce_llm.vision.losses.terms import FORMS, PairTerms, Weights, pair_terms

_NAMES = ("z1", "z2", "p1", "p2")


class MatrixSSLLoss(ViewLoss):
    """Matrix-SSL: matrix uniformity and matrix alignment of a student with its teacher, in nats.

    Rows are divided by their norms and centred over the batch, C_ab = aᵀ J b/m with J = I − 11ᵀ/m. For each of the
    pairs (p, z) = (p2, z1) and (p1, z2), and averaged over the two,

        uniformity   −λ tr log(C_pz + μI)                   a sum over d dimensions; λI is the target covariance
        alignment    −γ tr((C_pp + μI) log(C_zz + μI))      with the teacher's covariance as the target
        trace        +γ tr(C_zz + μI)                       `variant="paper"` only

    The teacher's rows are constants. The published code (`variant="official"`) has the first two, log being the
    Taylor series of order 4 around I, with λ = μ = γ = 1. It leaves out the +tr Q of the matrix cross-entropy
    MCE(P, Q) = tr(−P log Q + Q), and what that changes differs between the terms:

    * In the alignment term it matters. −tr(P log Q) alone falls without end as Q grows and has no minimum at Q = P;
      with +tr Q it has. `variant="paper"` puts it back, γ/2 Σ tr(C_zz + μI) over the pairs; the constant γμd in it
      makes the value large and changes no gradient.
    * In the uniformity term it would take away what the term is there for. With λ = μ = 1,
      −tr log(I + C_pz) = −tr C_pz + ½ tr C_pz² − …, and tr Q = tr C_pz + d would cancel the first-order term
      −tr C_pz, which is what aligns the views: p and z could then as well be opposite. So neither variant has it
      there; the paper's argument takes tr Q for a constant.

    Nothing is formed that is larger than the smaller of m×m and d×d (`form`), and value and gradient are formed
    together, so no graph of products is kept. Source: Zhang, Tan, Yang, Huang, Yuan, *Matrix Information Theory for
    Self-Supervised Learning*, ICML 2024, arXiv 2305.17326. The uniformity term is `MECLoss` of centred rows with
    `distortion` = d, and its first order is `SimSiamLoss` of centred rows.

    Components: "loss", "uniformity", "alignment", "trace" (which add up to it), and for the Taylor series
    "taylor_radius", a bound on the spectral radius of Q − I over all four matrices.

    Args:
        gamma: γ >= 0, weight of alignment.
        mu: μ > 0, what is added to every eigenvalue; below 2 for the Taylor series, which diverges from there on.
        lam: λ >= 0, weight of uniformity.
        order: k >= 1, terms of the Taylor series; not used by `log="exact"`.
        variant: "paper" or "official".
        log: "taylor", or "exact" for the true logarithm: log|det| in the uniformity term, because C_pz is not
            symmetric. A determinant that is not positive is refused; an even number of negative eigenvalues passes.
        form: "gram" (m×m matrices), "dim" (d×d), or "auto" for the cheaper by the number of multiply-adds.
        on_divergence: What to do where the Taylor series does not converge: "raise" an error, take the "exact" logarithm
            for that batch, or "ignore" it, as the published code does. Only looked at with `validate`.
        gather: As in `ViewLoss`.
        validate: As in `ViewLoss`.
        process_group: As in `ViewLoss`.
    """

    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        gamma: float = 1.0,
        mu: float = 1.0,
        lam: float = 1.0,
        order: int = 4,
        variant: str = "paper",
        log: str = "taylor",
        form: str = "auto",
        on_divergence: str = "raise",
        *,
        gather: bool = True,
        validate: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather=gather, validate=validate, process_group=process_group)
        problems = [
            *not_negative("gamma", gamma, "1 is the recipe's"),
            *positive("mu", mu, "1 is the recipe's"),
            *not_negative("lam", lam, "1 is the recipe's"),
            *order_of_series("order", order),
            *choice("variant", variant, ("paper", "official")),
            *choice("log", log, ("taylor", "exact")),
            *choice("form", form, FORMS),
            *choice("on_divergence", on_divergence, ON_DIVERGENCE),
        ]
        if not problems and lam == gamma == 0:
            problems.append("lam and gamma are both 0, so there is no loss; 1 and 1 are the recipe's")
        if not problems and log == "taylor" and mu >= 2:
            problems.append(
                f"mu must be below 2 with log='taylor', got {mu:g}: the series around I diverges for eigenvalues from 2 on; "
                "use log='exact'"
            )
        if on_divergence == "exact" and not validate:
            problems.append(
                "on_divergence='exact' needs validate=true: without it nobody looks whether the series diverges"
            )
        self._check(problems)
        self.gamma, self.mu, self.lam, self.order = gamma, mu, lam, order
        self.variant, self.log, self.form, self.on_divergence = variant, log, form, on_divergence
        # Each pair counts half.
        self._weights = Weights(lam / 2, gamma / 2, gamma / 2 if variant == "paper" else 0.0)
        self._exact = ExactLog(mu)
        self._logarithm: Logarithm = TaylorLog(order, mu) if log == "taylor" else self._exact

    def extra_repr(self) -> str:
        """The settings."""
        names = ("gamma", "mu", "lam", "order", "variant", "log", "form", "on_divergence")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def components(
        self, z1: Tensor, z2: Tensor, p1: Tensor | None = None, p2: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss and its terms; see the class.

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
        """
        given = {"z1": z1, "z2": z2, "p1": p1, "p2": p2}
        rows = whole_batch(
            type(self).__name__, given, constant=("p1", "p2"), gather=self.gather, group=self.process_group
        )
        first, second, teacher1, teacher2 = (centred(unit_rows(tensor)) for tensor in rows)
        pairs = [(teacher2, first), (teacher1, second)]
        terms = self._terms(rows, pairs, self._logarithm)
        radius = self._radius_bound(terms)
        if self.validate:
            bound = self._checked_radius(rows, terms, self._logarithm, radius)
            if bound >= 1 and self.on_divergence != "ignore" and self._must_be_exact(pairs):
                terms = self._terms(rows, pairs, self._exact)
                self._checked_radius(rows, terms, self._exact, radius)
        value = terms[0].value + terms[1].value
        parts = {
            "loss": with_gradient(value, first, terms[0].gradient, second, terms[1].gradient),
            "uniformity": terms[0].cross + terms[1].cross,
            "alignment": terms[0].covariance + terms[1].covariance,
        }
        if self.variant == "paper":
            parts["trace"] = terms[0].trace + terms[1].trace
        if self.log == "taylor":
            parts["taylor_radius"] = radius
        return parts

    @torch.no_grad()
    def _terms(
        self, rows: list[Tensor], pairs: list[tuple[Tensor, Tensor]], log: Logarithm
    ) -> list[PairTerms]:
        try:
            with full_precision(rows[0]):
                return [pair_terms(P, Z, 1 / len(Z), log, self._weights, self.form) for P, Z in pairs]
        except torch.linalg.LinAlgError:  # the exact logarithm of rows that are not finite
            checked_numbers(type(self).__name__, _NAMES, rows, rows[0].new_full((), torch.nan))
            raise

    def _radius_bound(self, terms: list[PairTerms]) -> Tensor:
        bounds = [cross_bound(pair.cross_radius, self.mu) for pair in terms]
        if self.gamma:
            bounds += [covariance_bound(pair.covariance_radius, self.mu) for pair in terms]
        return torch.stack(bounds).amax()

    def _checked_radius(
        self, rows: list[Tensor], terms: list[PairTerms], log: Logarithm, radius: Tensor
    ) -> float:
        """Refuse what cannot be trained on, and read the bound on the radius."""
        no_log_det = NegativeDeterminantError(
            f"{type(self).__name__}: det(C_pz + mu I) is not positive for mu = {self.mu:g}, so its logarithm does not "
            "exist: student and teacher point opposite ways in some direction; use a larger mu (1 suffices for unit "
            "rows), or log='taylor'"
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

    def _must_be_exact(self, pairs: list[tuple[Tensor, Tensor]]) -> bool:
        shift = self.mu - 1
        suspects = []
        for number, (P, Z) in enumerate(pairs, 1):
            if self.lam:
                suspects.append(
                    (f"C_pz + (mu − 1) I of pair {number}", partial(measured_radius, P, Z, 1 / len(Z), shift))
                )
            if self.gamma:
                suspects.append(
                    (
                        f"C_zz + (mu − 1) I of pair {number}",
                        partial(measured_radius, Z, Z, 1 / len(Z), shift, symmetric=True),
                    )
                )
        return must_be_exact(
            type(self).__name__, suspects, self.on_divergence, f"Use a mu nearer to 1 (now {self.mu:g})"
        )


def matrix_ssl_loss(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, **options: Any) -> Tensor:
    """`MatrixSSLLoss` as a function.

    Args:
        z1: (m, d), the student's rows of the first view.
        z2: (m, d), of the second.
        p1: (m, d), the teacher's rows of the first view, a constant.
        p2: (m, d), of the second.
        options: Those of `MatrixSSLLoss`.

    Returns:
        The scalar loss in nats, mean over the two pairs.
    """
    return MatrixSSLLoss(**options)(z1, z2, p1, p2)
