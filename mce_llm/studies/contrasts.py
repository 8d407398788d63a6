"""Pairs of arms that a study compares beside each arm with the baseline: is it better than that other arm, too?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mce_llm.eval.comparing.measure_comparison import compare_measure
from mce_llm.eval.comparing.measure_outcome import ArmMeasure, Values
from mce_llm.eval.comparing.measure_verdicts import arm_verdict, finding_of, weight_of
from mce_llm.eval.comparing.measures import Measure
from mce_llm.eval.comparing.p_values import holm
from mce_llm.studies.definition import Contrast


@dataclass(frozen=True)
class ContrastResult:
    """One arm held against another that is not the baseline, by the primary measure.

    Attributes:
        against: The other arm, in the place of the baseline.
        result: As for an arm and the baseline; p-value, simultaneous interval and verdict are corrected for the number
            of contrasts.
    """

    against: str
    result: ArmMeasure


def compare_contrasts(
    contrasts: Sequence[Contrast],
    measure: Measure,
    values: dict[str, Values],
    *,
    confidence: float,
    smallest_difference: float | None,
) -> tuple[ContrastResult, ...]:
    """Compare the arms of every contrast whose arms have a training seed in common.

    The contrasts are a family of their own: Holm's correction and the simultaneous intervals are over them, as for the
    arms of a measure. They count as planned, done or not, so that p-values do not grow while a study goes on.

    Args:
        contrasts: All that the study names.
        measure: The primary measure.
        values: Arm → training seed → what each question contributes.
        confidence: Of the intervals alone, and of the simultaneous ones together.
        smallest_difference: The smallest difference that matters.

    Returns:
        Those that can be compared, in the order given.
    """
    if not contrasts:
        return ()
    level = 1 - (1 - confidence) / len(contrasts)
    alone: list[tuple[str, ArmMeasure, ArmMeasure]] = []
    for contrast in contrasts:
        base, arm = values.get(contrast.against, {}), values.get(contrast.arm, {})
        if not set(base) & set(arm):
            continue
        found, wide = (
            compare_measure(measure, base, {contrast.arm: arm}, wanted, baseline_name=contrast.against).arms[
                0
            ]
            for wanted in (confidence, level)
        )
        alone.append((contrast.against, found, wide))
    missing = len(contrasts) - len(alone)
    adjusted = holm([found.p_value for _, found, _ in alone] + [1.0] * missing)
    results = []
    for (against, found, wide), p_holm in zip(alone, adjusted, strict=False):
        low, high = found.interval
        apart = p_holm <= 1 - confidence and not low <= 0 <= high
        result = replace(
            found,
            simultaneous=wide.interval,
            detectable=wide.detectable,
            p_holm=p_holm,
            finding=finding_of(measure, found.difference, apart),
            weight=weight_of(wide.interval, smallest_difference),
        )
        verdict = arm_verdict(
            measure,
            result,
            baseline=against,
            arms=len(contrasts),
            confidence=confidence,
            smallest=smallest_difference,
            of="contrasts",
        )
        results.append(ContrastResult(against, replace(result, verdict=verdict)))
    return tuple(results)
