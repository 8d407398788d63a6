"""Whether values of a measure can be compared: every problem named, all of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mce_llm.eval.comparing.measure_outcome import Seed, Values
from mce_llm.eval.comparing.measures import Measure
from mce_llm.eval.errors import EvaluationError

_ROUNDING = 1e-6  # values may come from a file with six digits


def common_seeds(baseline: Values, arm: Values) -> tuple[Seed, ...]:
    """Training seeds that both have, in the order of the baseline's."""
    return tuple(seed for seed in baseline if seed in arm)


def check_values(
    measure: Measure,
    baseline: Values,
    arms: Mapping[str, Values],
    smallest_difference: float | None = None,
    baseline_name: str = "A",
) -> None:
    """Refuse values that cannot be compared.

    Args:
        measure: What they are of.
        baseline: Training seed → one value a question.
        arms: Name → the same.
        smallest_difference: The smallest difference that matters.
        baseline_name: What the baseline is called.

    Raises:
        EvaluationError: They cannot; the message names the measure, and every problem.
    """
    problems = []
    if not baseline:
        problems.append(f"the baseline {baseline_name} has no run")
    if not arms:
        problems.append("there is no arm that is held against the baseline")
    if baseline_name in arms:
        problems.append(f"the baseline and an arm are both called {baseline_name!r}")
    if smallest_difference is not None:
        problems += wrong_size(measure, smallest_difference)
    runs = [
        (f"{name}, seed {seed}", np.asarray(values))
        for name, side in ((baseline_name, baseline), *arms.items())
        for seed, values in side.items()
    ]
    sizes: dict[tuple[int, ...], str] = {}
    for run, values in runs:
        sizes.setdefault(values.shape, run)
        problems += _wrong_values(measure, run, values)
    if len(sizes) > 1:
        told = ", ".join(f"{run} {shape}" for shape, run in sizes.items())
        problems.append(f"runs have other questions: shapes are {told}")
    problems += [
        f"{name} shares no training seed with {baseline_name} ({_listed(side)} and {_listed(baseline)})"
        for name, side in arms.items()
        if baseline and not common_seeds(baseline, side)
    ]
    if problems:
        raise EvaluationError(f"{measure.name} cannot be compared: {'; '.join(problems)}")


def wrong_size(measure: Measure | None, size: float) -> list[str]:
    """Tell what is wrong with a smallest difference that matters.

    Args:
        measure: Of what; None where that is not known.
        size: The difference, in its scale.

    Returns:
        The problem in words, or nothing.
    """
    if not (math.isfinite(size) and size > 0):
        return [f"the smallest difference that matters must be above 0, got {size}"]
    if measure is not None and measure.reach is not None and size >= measure.reach:
        return [
            f"the smallest difference that matters must be below {measure.reach:g}, got {size}: it is a share, 0.01 for a "
            "point"
        ]
    return []


def _wrong_values(measure: Measure, run: str, values: np.ndarray) -> list[str]:
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        return [
            f"{run} must be a row of numbers, one a question, got {values.dtype} of the shape {values.shape}"
        ]
    if len(values) < 2:
        return [f"{run} has {len(values)} questions; an interval needs 2 different ones at least"]
    wrong = np.flatnonzero(~np.isfinite(values.astype(np.float64)))
    if wrong.size:
        return [
            f"{run} has {wrong.size:,} values that are no finite numbers, the first of question no. {wrong[0] + 1}"
        ]
    mean, (low, high) = float(values.mean()), measure.bounds
    if mean < low - _ROUNDING or (high is not None and mean > high + _ROUNDING):
        most = "" if high is None else f" and {high:g}"
        return [
            f"{run} has a mean of {mean:g}, which must be {'at least' if high is None else 'between'} {low:g}{most}"
        ]
    return []


def _listed(side: Values) -> str:
    return ", ".join(map(str, side)) or "no seeds"
