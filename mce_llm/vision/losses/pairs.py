"""What Matrix-SSL and maximum entropy coding share: two pairs of student and teacher, and the logarithm of their products.

The arithmetic of one pair is in `terms`, the question whether the Taylor series converges in `convergence`.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from mce_llm.matrix import full_precision
from mce_llm.matrix.first_order import with_gradient
from mce_llm.vision.losses.base import ViewLoss
from mce_llm.vision.losses.convergence import ON_DIVERGENCE, must_be_exact
from mce_llm.vision.losses.logarithms import ExactLog, Logarithm, TaylorLog
from mce_llm.vision.losses.rows import checked_numbers, unit_rows, whole_batch
from mce_llm.vision.losses.settings import choice, order_of_series
from mce_llm.vision.losses.terms import FORMS, PairTerms, Weights, pair_terms

Pair = tuple[Tensor, Tensor]
"""The teacher's and the student's rows (m, d), normalised."""

_NAMES = ("z1", "z2", "p1", "p2")


class PairedLogLoss(ViewLoss):
    """The sum of `pair_terms` over the pairs (p, z) = (p2, z1) and (p1, z2), with the Taylor or the exact logarithm.

    A subclass calls `_check` and then `_choose_logarithm`, and says how rows are normalised and products are scaled
    and weighted.

    With `on_divergence="exact"` the first batch for which the series diverges changes the logarithm for good, with a
    warning, because the two have different scales: a loss that went back and forth would compare batches that cannot
    be compared. Which one is in use is part of `state_dict`, so that a run that goes on stays with it.

    Args:
        order: As in `MatrixSSLLoss`, like the next three.
        log: "taylor" or "exact".
        form: "gram", "dim" or "auto".
        on_divergence: "raise", "exact" or "ignore".
        gather: As in `ViewLoss`.
        validate: As in `ViewLoss`.
        process_group: As in `ViewLoss`.
    """

    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        order: int,
        log: str,
        form: str,
        on_divergence: str,
        *,
        gather: bool,
        validate: bool,
        process_group: dist.ProcessGroup | None,
    ) -> None:
        super().__init__(gather=gather, validate=validate, process_group=process_group)
        self.order, self.log, self.form, self.on_divergence = order, log, form, on_divergence
        self._exact: ExactLog
        self._series: TaylorLog
        self._diverged = False

    def _check(self, problems: list[str]) -> None:
        problems = [
            *problems,
            *order_of_series("order", self.order),
            *choice("log", self.log, ("taylor", "exact")),
            *choice("form", self.form, FORMS),
            *choice("on_divergence", self.on_divergence, ON_DIVERGENCE),
        ]
        if self.on_divergence == "exact" and not self.validate:
            problems.append(
                "on_divergence='exact' needs validate=true: without it nobody looks whether the series diverges"
            )
        super()._check(problems)

    def _choose_logarithm(self, mu: float) -> None:
        """Set up log(· + μI), once the settings are known to be usable."""
        self._exact = ExactLog(mu)
        self._series = TaylorLog(self.order, mu)

    @property
    def logarithm(self) -> str:
        """`taylor` or `exact`: the one that the next batch takes."""
        return "exact" if self._diverged else self.log

    def get_extra_state(self) -> dict[str, Any]:
        """Whether the series has diverged, for `state_dict`."""
        return {"diverged": self._diverged}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        self._diverged = bool(state["diverged"])

    def components(
        self, z1: Tensor, z2: Tensor, p1: Tensor | None = None, p2: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss and its parts; see the class.

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
            RankMismatchError: Processes brought rows that do not fit together.
            LossSettingsError: There is a warm-up and `set_epoch` was never called.
        """
        given = {"z1": z1, "z2": z2, "p1": p1, "p2": p2}
        rows = whole_batch(
            type(self).__name__, given, constant=("p1", "p2"), gather=self.gather, group=self.process_group
        )
        first, second, teacher1, teacher2 = (self._normalised(tensor) for tensor in rows)
        pairs = [(teacher2, first), (teacher1, second)]
        scale, weights = self._scale_and_weights(*first.shape)
        series = self.logarithm == "taylor"
        log: Logarithm = self._series if series else self._exact
        terms = self._terms(rows, pairs, scale, weights, log)
        radius = self._radius_bound(terms)
        if self.validate:
            bound = self._checked_radius(rows, terms, radius)
            if series and bound >= 1 and self.on_divergence != "ignore" and self._diverges(pairs, scale):
                log, self._diverged = self._exact, True
                terms = self._terms(rows, pairs, scale, weights, log)
                self._checked_radius(rows, terms, radius)
        value = terms[0].value + terms[1].value
        loss = with_gradient(value, first, terms[0].gradient, second, terms[1].gradient)
        parts = {"loss": loss, **self._parts(terms, *first.shape)}
        if series:
            parts["taylor_radius"] = radius
        if log is self._exact:
            parts["floored_eigenvalues"] = terms[0].floored + terms[1].floored
        if self.on_divergence == "exact" and self.log == "taylor":
            parts["exact_logarithm"] = torch.full_like(value, float(log is self._exact))
        return parts

    def _normalised(self, rows: Tensor) -> Tensor:
        return unit_rows(rows)

    @abstractmethod
    def _scale_and_weights(self, rows: int, dim: int) -> tuple[float, Weights]:
        """What products of rows are multiplied by, and the weights of the terms of one pair."""

    @abstractmethod
    def _radius_bound(self, terms: list[PairTerms]) -> Tensor:
        """A bound on the spectral radius of Q − I over all matrices whose logarithm is taken."""

    @abstractmethod
    def _suspects(self, number: int, pair: Pair, scale: float) -> list[tuple[str, Callable[[], float]]]:
        """What the matrices of pair `number` are called, and how the spectral radius of each is measured."""

    @abstractmethod
    def _parts(self, terms: list[PairTerms], rows: int, dim: int) -> dict[str, Tensor]:
        """What is logged beside the loss and the radius."""

    @abstractmethod
    def _remedy(self) -> str:
        """For messages: what to change where the series diverges."""

    @torch.no_grad()
    def _terms(
        self, rows: list[Tensor], pairs: list[Pair], scale: float, weights: Weights, log: Logarithm
    ) -> list[PairTerms]:
        try:
            with full_precision(rows[0]):
                return [pair_terms(P, Z, scale, log, weights, self.form) for P, Z in pairs]
        except torch.linalg.LinAlgError:  # the exact logarithm of rows that are not finite
            checked_numbers(type(self).__name__, _NAMES, rows, rows[0].new_full((), torch.nan))
            raise

    def _checked_radius(self, rows: list[Tensor], terms: list[PairTerms], radius: Tensor) -> float:
        """Refuse what cannot be trained on, and read the bound on the radius."""
        value = terms[0].value + terms[1].value
        (bound,) = checked_numbers(type(self).__name__, _NAMES, rows, value, [radius])
        return bound

    def _diverges(self, pairs: list[Pair], scale: float) -> bool:
        suspects = [
            suspect for number, pair in enumerate(pairs, 1) for suspect in self._suspects(number, pair, scale)
        ]
        owner = type(self).__name__
        why = must_be_exact(owner, suspects, self.on_divergence, self._remedy())
        # Processes that share a batch find the same, and one of them says it.
        if why is not None and not (self.gather and dist.is_initialized() and dist.get_rank()):
            warnings.warn(
                f"{owner}: {why}, and the Taylor series of the logarithm diverges beyond 1: this batch and all that follow take "
                "the exact logarithm (on_divergence='exact'). Losses before and after have different scales",
                stacklevel=3,
            )
        return why is not None
