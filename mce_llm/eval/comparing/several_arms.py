"""Several methods held against one baseline: each comparison as for a single one, corrected for how many there are.

With m arms the chance that one of them seems to differ by luck grows with m. Holm's procedure keeps the probability of
any false finding at α or below, whatever the arms share (they share the baseline and the questions). Intervals are
given twice: each alone at 1 − α, and simultaneously at 1 − α/m (Bonferroni), which all cover together with 1 − α.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

from mce_llm.eval.comparing.comparison import compare_runs
from mce_llm.eval.comparing.comparison_outcome import Comparison, Detectable
from mce_llm.eval.comparing.labels import run_labels
from mce_llm.eval.comparing.p_values import holm
from mce_llm.eval.comparing.pairing import Arrangement, Run
from mce_llm.eval.comparing.verdicts import p_text, percent, points
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import Interval
from mce_llm.eval.saved_runs import SavedRun
from mce_llm.running.messages import counted

LETTERS = "BCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What arms are called, in their order; the baseline is A."""


@dataclass(frozen=True)
class ArmResult:
    """One arm against the baseline.

    Attributes:
        name: What people call it.
        comparison: As for a single arm, its interval for this comparison alone; its verdict is corrected.
        simultaneous: The interval at 1 − α/m.
        detectable: What could have been found at α/m.
        p_value: Of no difference, for this comparison alone.
        p_holm: The same after Holm's correction.
        found: Whether p_holm ≤ α, and the interval alone leaves out 0.
    """

    name: str
    comparison: Comparison
    simultaneous: Interval
    detectable: Detectable
    p_value: float
    p_holm: float
    found: bool


@dataclass(frozen=True)
class ArmsComparison:
    """A baseline and several arms.

    Attributes:
        baseline: Its name.
        confidence: Of the intervals alone, and of the simultaneous ones together.
        arms: B, C, …
        verdict: What may be concluded of all of them, in plain words.
    """

    baseline: str
    confidence: float
    arms: tuple[ArmResult, ...]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """The whole comparison as `json.dumps` takes it."""
        return asdict(self)


def arm_names(arrangement: Arrangement[Run]) -> list[str]:
    """What baseline and arms are called: their names, what the names of their runs begin with, methods, or letters.

    Args:
        arrangement: The arms.

    Returns:
        A name for the baseline, and one for each arm, all different.
    """
    arms = (arrangement.baseline, *arrangement.arms)
    labels = dict(zip(map(id, arrangement.runs), run_labels(arrangement.runs), strict=True))
    names = [
        arm.name or _beginning([labels[id(run)] for run in arm.runs]) or arm.method or "" for arm in arms
    ]
    return [
        name if name and names.count(name) == 1 else letter
        for name, letter in zip(names, "A" + LETTERS, strict=False)
    ]


def _beginning(labels: Sequence[str]) -> str:
    """What all labels begin with, without a seed's number; one label is its own name."""
    if len(labels) == 1:
        return labels[0]
    shared = "".join(letters[0] for letters in takewhile(_alike, zip(*labels, strict=False)))
    return re.sub(r"[-_. ]*(seed|run|s)?[-_. 0-9/]*$", "", shared)


def _alike(letters: Sequence[str]) -> bool:
    return len(set(letters)) == 1


def compare_arms(
    arrangement: Arrangement[SavedRun],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    allow_differences: bool = False,
) -> ArmsComparison:
    """Compare each arm with the baseline.

    Args:
        arrangement: Two arms or more; one is a comparison without correction.
        confidence: Coverage of the intervals, each alone and all together; tests use 1 − confidence.
        resamples: Drawings of the bootstrap.
        seed: Of its random numbers.
        allow_differences: Compare runs whose prompt, decoding or dtype differs, with a warning in the outcome.

    Returns:
        The comparisons, their verdicts corrected for the number of arms.

    Raises:
        EvaluationError: The runs cannot be compared, or there are more arms than letters.
        IntervalError: The confidence or the number of resamples is out of range.
    """
    if len(arrangement.arms) > len(LETTERS):
        raise EvaluationError(f"{len(arrangement.arms)} arms are given; the most are {len(LETTERS)}")
    alone: list[Comparison] = []
    together: list[Comparison] = []
    level = 1 - (1 - confidence) / len(arrangement.arms)
    for arm, letter in zip(arrangement.arms, LETTERS, strict=False):
        for outcomes, wanted in ((alone, confidence), (together, level)):
            outcomes.append(
                compare_runs(
                    arrangement.pairs(arm),
                    confidence=wanted,
                    resamples=resamples,
                    seed=seed,
                    allow_differences=allow_differences,
                    pairing=arrangement.how,
                    doubts=arrangement.doubts,
                    sides=("A", letter),
                )
            )
    baseline, *names = arm_names(arrangement)
    adjusted = holm([comparison.p_value for comparison in alone])
    arms = []
    for name, comparison, wide, p_holm in zip(names, alone, together, adjusted, strict=True):
        low, high = comparison.interval
        found = p_holm <= 1 - confidence and not low <= 0 <= high
        result = ArmResult(
            name=name,
            comparison=comparison,
            simultaneous=wide.interval,
            detectable=wide.detectable,
            p_value=comparison.p_value,
            p_holm=p_holm,
            found=found,
        )
        arms.append(replace(result, comparison=replace(comparison, verdict=_verdict(result, len(adjusted)))))
    return ArmsComparison(baseline, confidence, tuple(arms), _conclusion(baseline, arms, confidence))


def _verdict(result: ArmResult, arms: int) -> str:
    """What may be concluded of one arm, among so many."""
    comparison, letter = result.comparison, result.comparison.sides[1]
    intervals = (
        f"{percent(comparison.confidence)} interval alone {_bounds(comparison.interval)}, simultaneous over {arms} arms "
        f"{_bounds(result.simultaneous)}; {p_text(result.p_value)}, corrected for {arms} arms (Holm) "
        f"{p_text(result.p_holm)}"
    )
    one = comparison.seeds is None
    seeds = (
        "" if one else f" on average over {comparison.seeds.seeds} training seeds" if comparison.seeds else ""
    )
    alone = " It is one training seed each: nothing here knows of other seeds." if one else ""
    if not result.found:
        return (
            f"These runs do not tell A and {letter} apart: {letter} minus A is "
            f"{points(comparison.difference, sign=True)} points{seeds} ({intervals}).{alone}"
        )
    better, worse = (letter, "A") if comparison.difference > 0 else ("A", letter)
    trained = "For these two trained models " if one else ""
    return (
        f"{trained}{better} is better than {worse} by {points(abs(comparison.difference))} points{seeds} ({intervals})."
        f"{alone}"
    )


def _conclusion(baseline: str, arms: Sequence[ArmResult], confidence: float) -> str:
    told = []
    for which, sign in (("better", 1), ("worse", -1)):
        names = [
            f"{arm.comparison.sides[1]} ({arm.name})"
            for arm in arms
            if arm.found and sign * arm.comparison.difference > 0
        ]
        if names:
            told.append(
                f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {which} than A ({baseline})"
            )
    rest = [f"{arm.comparison.sides[1]} ({arm.name})" for arm in arms if not arm.found]
    if rest:
        told.append(
            f"{', '.join(rest)} {'is' if len(rest) == 1 else 'are'} not told apart from A ({baseline})"
        )
    return (
        f"{'; '.join(told)}. The probability of any false finding among {counted(len(arms), 'arm')} is at most "
        f"{percent(1 - confidence)} (Holm)."
    )


def _bounds(interval: Interval) -> str:
    return f"{points(interval.low, sign=True)} to {points(interval.high, sign=True)}"
