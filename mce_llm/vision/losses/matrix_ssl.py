"""The Matrix-SSL loss, as published in code and as in the paper. How it is computed is in `pairs` and `terms`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mce_llm.vision.losses.convergence import covariance_bound, cross_bound, measured_radius
from mce_llm.vision.losses.pairs import Pair, PairedLogLoss
from mce_llm.vision.losses.rows import centred, unit_rows
from mce_llm.vision.losses.settings import choice, not_negative, positive
from mce_llm.vision.losses.terms import PairTerms, Weights


class MatrixSSLLoss(PairedLogLoss):
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

    Components: "loss", "uniformity", "alignment", "trace" (which add up to it); for the Taylor series "taylor_radius", a
    bound on the spectral radius of Q − I over all four matrices; for the exact logarithm "floored_eigenvalues", how
    many of C_pz + μI are below the floor, over both pairs; with `on_divergence="exact"` "exact_logarithm", 1 for batches
    that took it and 0 for others.

    Args:
        gamma: γ >= 0, weight of alignment.
        mu: μ > 0, what is added to every eigenvalue; below 2 for the Taylor series, which diverges from there on.
        lam: λ >= 0, weight of uniformity.
        order: k >= 1, terms of the Taylor series; not used by `log="exact"`.
        variant: "paper" or "official".
        log: "taylor", or "exact" for the true logarithm. C_pz is not symmetric, and for μ < 1 nothing keeps an eigenvalue of
            C_pz + μI from 0 and below, where student and teacher point opposite ways and there is no logarithm. So the
            uniformity term is log det where all of them have real parts of μ/10 or more, and below that each one's log
            goes on as its tangent, with a slope of 10/μ that still draws it back (`floored_log_det`). A few batches of a
            training with μ = 0.05 get there. The host waits for the device in each step.
        form: "gram" (m×m matrices), "dim" (d×d), or "auto" for the cheaper by the number of multiply-adds.
        on_divergence: What to do where the Taylor series does not converge: "raise" an error, take the "exact" logarithm
            from that batch on, with a warning, or "ignore" it, as the published code does. Only looked at with `validate`;
            with `gather=False` each process decides for itself.
        gather: As in `ViewLoss`.
        validate: As in `ViewLoss`.
        process_group: As in `ViewLoss`.
    """

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
        super().__init__(
            order, log, form, on_divergence, gather=gather, validate=validate, process_group=process_group
        )
        problems = [
            *not_negative("gamma", gamma, "1 is the recipe's"),
            *positive("mu", mu, "1 is the recipe's"),
            *not_negative("lam", lam, "1 is the recipe's"),
            *choice("variant", variant, ("paper", "official")),
        ]
        if not problems and lam == gamma == 0:
            problems.append("lam and gamma are both 0, so there is no loss; 1 and 1 are the recipe's")
        if not problems and log == "taylor" and mu >= 2:
            problems.append(
                f"mu must be below 2 with log='taylor', got {mu:g}: the series around I diverges for eigenvalues from 2 on; "
                "use log='exact'"
            )
        self._check(problems)
        self.gamma, self.mu, self.lam, self.variant = gamma, mu, lam, variant
        # Each pair counts half.
        self._weights = Weights(lam / 2, gamma / 2, gamma / 2 if variant == "paper" else 0.0)
        self._choose_logarithm(mu)

    def extra_repr(self) -> str:
        """The settings."""
        names = ("gamma", "mu", "lam", "order", "variant", "log", "form", "on_divergence")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _normalised(self, rows: Tensor) -> Tensor:
        return centred(unit_rows(rows))

    def _scale_and_weights(self, rows: int, dim: int) -> tuple[float, Weights]:
        return 1 / rows, self._weights

    def _radius_bound(self, terms: list[PairTerms]) -> Tensor:
        bounds = [cross_bound(pair.cross_radius, self.mu) for pair in terms]
        if self.gamma:
            bounds += [covariance_bound(pair.covariance_radius, self.mu) for pair in terms]
        return torch.stack(bounds).amax()

    def _suspects(self, number: int, pair: Pair, scale: float) -> list[tuple[str, Callable[[], float]]]:
        P, Z = pair
        shift = self.mu - 1
        cross = partial(measured_radius, P, Z, scale, shift)
        covariance = partial(measured_radius, Z, Z, scale, shift, symmetric=True)
        return [
            *([(f"C_pz + (mu − 1) I of pair {number}", cross)] if self.lam else []),
            *([(f"C_zz + (mu − 1) I of pair {number}", covariance)] if self.gamma else []),
        ]

    def _parts(self, terms: list[PairTerms], rows: int, dim: int) -> dict[str, Tensor]:
        parts = {
            "uniformity": terms[0].cross + terms[1].cross,
            "alignment": terms[0].covariance + terms[1].covariance,
        }
        if self.variant == "paper":
            parts["trace"] = terms[0].trace + terms[1].trace
        return parts

    def _remedy(self) -> str:
        return f"Use a mu nearer to 1 (now {self.mu:g})"


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
