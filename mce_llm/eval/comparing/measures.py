"""The measures that evaluations are compared by: what each is called, its unit, its bounds, and which way is better.

What a question contributes to a measure is in `question_values`, comparisons are in `measure_comparison`. A measure is
the mean over questions of these contributions, so that one kind of interval serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mce_llm.eval.errors import EvaluationError
from mce_llm.running.messages import nearest_hint

Unit = Literal["points", "nats per token"]

GROUPS = {
    "all": "all tokens",
    "numbers": "tokens of numbers",
    "results": "results behind =",
    "answer": "final answer",
    "words": "tokens of words",
}
"""Groups of tokens whose likelihood is measured, with their titles."""


@dataclass(frozen=True)
class Measure:
    """Something that two methods are compared by.

    Attributes:
        name: `accuracy`, or the group of tokens and the quantity: `numbers.nats`.
        title: What people call it.
        unit: `points` for shares, which are held as shares and shown in points, or `nats per token`.
        lower_is_better: Which way is better; None where neither is, as for the entropy of predictions.
        bounds: The values that a run can have; the upper one is None where there is none.
        step: What the least change of a question's contribution is: a whole `answer`, or a `token` of its tokens; None
            where it is as small as one likes. It sets how narrow an interval may be; see `least_half_width`.
    """

    name: str
    title: str
    unit: Unit
    lower_is_better: bool | None
    bounds: tuple[float, float | None]
    step: Literal["answer", "token"] | None = None

    @property
    def group(self) -> str | None:
        """The group of tokens, a key of `GROUPS`; None for accuracy."""
        return self.name.partition(".")[0] if "." in self.name else None

    @property
    def quantity(self) -> str:
        """`accuracy`, `nats`, `top1`, `entropy`, `ece` or `ece_debiased`."""
        return self.name.rpartition(".")[2]

    @property
    def reach(self) -> float | None:
        """The largest true difference that two methods can have: 1 for shares; None where there is none."""
        return None if self.bounds[1] is None else 1.0


def _of_group(group: str, title: str) -> list[Measure]:
    return [
        Measure(f"{group}.nats", f"negative log-likelihood, {title}", "nats per token", True, (0, None)),
        Measure(f"{group}.top1", f"first choice right, {title}", "points", False, (0, 1), "token"),
        Measure(f"{group}.entropy", f"entropy of predictions, {title}", "nats per token", None, (0, None)),
    ]


def _of_calibration(group: str, title: str) -> list[Measure]:
    error = "expected calibration error"
    return [
        Measure(f"{group}.ece", f"{error}, {title}", "points", True, (0, 1)),
        Measure(f"{group}.ece_debiased", f"{error} less its bias, {title}", "points", True, (-1, 1)),
    ]


ACCURACY = Measure("accuracy", "accuracy", "points", False, (0, 1), "answer")
"""The share of questions that are answered rightly."""
MEASURES = {
    measure.name: measure
    for measure in (
        ACCURACY,
        *(measure for group, title in GROUPS.items() for measure in _of_group(group, title)),
        *(measure for group in ("all", "numbers") for measure in _of_calibration(group, GROUPS[group])),
    )
}
"""Every measure by its name."""


def measure_named(name: str) -> Measure:
    """Look a measure up.

    Args:
        name: Such as `numbers.nats`.

    Returns:
        The measure.

    Raises:
        EvaluationError: There is none of that name.
    """
    if name not in MEASURES:
        raise EvaluationError(
            f"there is no measure {name!r}{nearest_hint(name, MEASURES)}; measures are {', '.join(MEASURES)}"
        )
    return MEASURES[name]


def in_order(names: Sequence[str]) -> list[str]:
    """Names of measures in the order in which tables show them."""
    return [name for name in MEASURES if name in set(names)]
