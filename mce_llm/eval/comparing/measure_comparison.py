"""Arms held against a baseline by real-valued measures: differences, intervals over seeds and questions, tests.

`compare_measure` takes numbers alone, one a question, seed and arm, wherever they come from. Right and wrong answers are
the special case of values 0 and 1, and give what `comparison` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from mce_llm.eval.comparing.comparison_outcome import Detectable
from mce_llm.eval.comparing.detecting import (
    detectable_by_mcnemar,
    detectable_by_questions,
    detectable_by_seeds,
)
from mce_llm.eval.comparing.measure_checks import check_values, common_seeds
from mce_llm.eval.comparing.measure_outcome import (
    ArmMeasure,
    MeasureComparison,
    MeasureValues,
    Values,
)
from mce_llm.eval.comparing.measure_verdicts import arm_verdict, conclusion, finding_of, weight_of
from mce_llm.eval.comparing.measures import MEASURES, Measure
from mce_llm.eval.comparing.p_values import holm
from mce_llm.eval.comparing.paired import (
    PairedCounts,
    in_whole_units,
    mcnemar_exact,
    sign_flip_test,
    tango_interval,
)
from mce_llm.eval.comparing.question_spread import QuestionSpread
from mce_llm.eval.comparing.question_tails import RESAMPLES, QuestionTails
from mce_llm.eval.comparing.training_seeds import SeedSpread
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import Interval, check_confidence
from mce_llm.running.messages import nearest_hint

_MOST_SAMPLES = 10_000  # of a question: scores are shares of right answers among so many at most


def compare_measure(
    measure: Measure,
    baseline: Values,
    arms: Mapping[str, Values],
    confidence: float = 0.95,
    smallest_difference: float | None = None,
    *,
    baseline_name: str = "A",
    primary: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> MeasureComparison:
    """Compare each arm with the baseline by one measure.

    The difference is the mean over the training seeds that both have and over questions. Several seeds: the interval of
    `SeedSpread`, over both. One seed: over questions alone; right and wrong answers by Tango's interval and McNemar's
    exact test, shares of right answers by Student's interval and the sign-flip test. Where contributions have no bound
    (nats, entropy) the question part takes the wider of Student's and the studentised bootstrap's quantiles. Other
    p-values are the least α whose interval leaves out 0.

    Args:
        measure: Which.
        baseline: Training seed → what each question contributes, (n,) numbers whose mean is the measure.
        arms: Name → the same. Seeds that one side has alone are left out, and listed.
        confidence: Of the intervals, each alone and, at 1 − (1 − confidence)/m, all m arms together.
        smallest_difference: The smallest difference that matters, in the measure's scale: 0.01 for a point.
        baseline_name: What it is called.
        primary: Whether the measure was named before as the one that decides.
        resamples: Drawings of the bootstrap.
        seed: Of its random numbers.

    Returns:
        The comparison, p-values and verdicts corrected for the number of arms.

    Raises:
        EvaluationError: Values have other numbers of questions, are no finite numbers or out of the measure's bounds, an
            arm shares no seed with the baseline, or there is none; all problems at once.
        IntervalError: The confidence or the number of resamples is out of range.
    """
    check_confidence(confidence)
    check_values(measure, baseline, arms, smallest_difference, baseline_name)
    level = 1 - (1 - confidence) / len(arms)
    sides = {name: _Sides.of(measure, baseline, values, resamples, seed) for name, values in arms.items()}
    adjusted = holm([side.test(confidence)[0] for side in sides.values()])
    found = []
    for (name, side), p_holm in zip(sides.items(), adjusted, strict=True):
        difference = float(side.differences_SQ.mean())
        p_value, test = side.test(confidence)
        interval, simultaneous = side.interval(confidence), side.interval(level)
        apart = not interval.low <= 0 <= interval.high
        spread = side.spread
        arm = ArmMeasure(
            name=name,
            seeds=side.seeds,
            left_out=tuple(
                seed for seed in dict.fromkeys([*baseline, *arms[name]]) if seed not in side.seeds
            ),
            baseline_value=float(side.baseline_SQ.mean()),
            value=float(side.arm_SQ.mean()),
            difference=difference,
            interval=interval,
            interval_method=side.interval_method,
            simultaneous=simultaneous,
            p_value=p_value,
            test=test,
            p_holm=p_holm,
            finding=finding_of(measure, difference, apart and p_holm <= 1 - confidence),
            weight=weight_of(simultaneous, smallest_difference),
            detectable=side.detectable(level),
            seed_differences=tuple(side.differences_SQ.mean(axis=1).tolist()),
            seed_sd=spread.observed_sd if isinstance(spread, SeedSpread) else None,
            seed_sd_by_chance=spread.sd_by_chance if isinstance(spread, SeedSpread) else None,
            verdict="",
        )
        verdict = arm_verdict(
            measure,
            arm,
            baseline=baseline_name,
            arms=len(arms),
            confidence=confidence,
            smallest=smallest_difference,
        )
        found.append(replace(arm, verdict=verdict))
    return MeasureComparison(
        measure=measure,
        baseline=baseline_name,
        n=len(next(iter(baseline.values()))),
        confidence=confidence,
        smallest_difference=smallest_difference,
        primary=primary,
        baseline_values={seed: float(np.mean(values)) for seed, values in baseline.items()},
        arms=tuple(found),
        verdict=conclusion(measure, found, baseline=baseline_name, confidence=confidence, primary=primary),
    )


def compare_measures(
    tables: Sequence[MeasureValues],
    *,
    primary: str | None = None,
    confidence: float = 0.95,
    smallest_differences: Mapping[str, float] | None = None,
    baseline_name: str = "A",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[MeasureComparison, ...]:
    """Compare arms by several measures.

    Holm's correction is over the arms of each measure. It is not over measures: one of them has to be named as primary
    before the runs are looked at, and decides; the others describe where a difference is, and a p-value among many of
    them is not evidence by itself.

    Args:
        tables: Each measure with its values.
        primary: Name of the measure that decides; None where none was named.
        confidence: As in `compare_measure`.
        smallest_differences: Name of a measure → the smallest difference that matters.
        baseline_name: What the baseline is called.
        resamples: Drawings of the bootstrap.
        seed: Of its random numbers.

    Returns:
        A comparison each, the primary first, the rest in the order given.

    Raises:
        EvaluationError: `primary` or a key of `smallest_differences` is none of the measures, a measure is there twice,
            or values cannot be compared.
        IntervalError: The confidence or the number of resamples is out of range.
    """
    names = [table.measure.name for table in tables]
    smallest = dict(smallest_differences or {})
    problems = [f"{name} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    for what, asked in (
        ("the primary measure", [primary] * (primary is not None)),
        ("the measure with a smallest difference", smallest),
    ):
        problems += [
            f"{what} {name!r} was not measured{'' if name in MEASURES else nearest_hint(str(name), names)}; there is "
            f"{', '.join(names)}"
            for name in asked
            if name not in names
        ]
    if problems:
        raise EvaluationError("; ".join(problems))
    compared = [
        compare_measure(
            table.measure,
            table.baseline,
            table.arms,
            confidence,
            smallest.get(table.measure.name),
            baseline_name=baseline_name,
            primary=table.measure.name == primary,
            resamples=resamples,
            seed=seed,
        )
        for table in tables
    ]
    return tuple(sorted(compared, key=lambda comparison: not comparison.primary))


@dataclass(frozen=True)
class _Sides:
    """The values of an arm and of the baseline for the seeds that both have, and what their differences are worth."""

    measure: Measure
    seeds: tuple[object, ...]
    baseline_SQ: np.ndarray
    arm_SQ: np.ndarray
    spread: SeedSpread | QuestionSpread
    counts: PairedCounts | None

    @classmethod
    def of(cls, measure: Measure, baseline: Values, arm: Values, resamples: int, seed: int) -> _Sides:
        seeds = common_seeds(baseline, arm)
        baseline_SQ, arm_SQ = (
            np.array([np.asarray(side[seed], dtype=np.float64) for seed in seeds]) for side in (baseline, arm)
        )
        differences_SQ = arm_SQ - baseline_SQ
        skewed = measure.reach is None
        tails = QuestionTails.of(differences_SQ.mean(axis=0), resamples, seed) if skewed else None
        step = _step(measure, baseline_SQ, arm_SQ)
        counts = None
        spread: SeedSpread | QuestionSpread
        if len(seeds) > 1:
            spread = SeedSpread.of(differences_SQ, bound=measure.reach, step=step, tails=tails)
        else:
            spread = QuestionSpread.of(differences_SQ[0], bound=measure.reach, step=step, tails=tails)
            if measure.step == "answer" and np.isin([baseline_SQ, arm_SQ], (0.0, 1.0)).all():
                counts = PairedCounts.of((baseline_SQ[0] == 1).tolist(), (arm_SQ[0] == 1).tolist())
        return cls(measure, seeds, baseline_SQ, arm_SQ, spread, counts)

    @property
    def differences_SQ(self) -> np.ndarray:
        return self.arm_SQ - self.baseline_SQ

    @property
    def interval_method(self) -> str:
        if self.counts is not None:
            return "Tango's score interval, over questions alone"
        questions = "Student's t" if self.spread.tails is None else "studentised bootstrap"
        if len(self.seeds) == 1:
            return f"{questions}, over questions alone"
        return f"over seeds (Student's t) and questions ({questions})"

    def interval(self, confidence: float) -> Interval:
        if self.counts is not None:
            return tango_interval(self.counts.only_a, self.counts.only_b, self.counts.n, confidence)
        return self.spread.interval(confidence)

    def test(self, confidence: float) -> tuple[float, str]:
        """The p-value and what it is of."""
        if self.counts is not None:
            return mcnemar_exact(self.counts.only_a, self.counts.only_b), "exact McNemar"
        if len(self.seeds) == 1 and self.measure.step == "answer":
            shares = [
                Fraction(y).limit_denominator(_MOST_SAMPLES) - Fraction(x).limit_denominator(_MOST_SAMPLES)
                for x, y in zip(self.baseline_SQ[0].tolist(), self.arm_SQ[0].tolist(), strict=True)
            ]
            return sign_flip_test(in_whole_units(shares)), "exact sign-flip test"
        return self.spread.p_value(), "the least α whose interval leaves out 0"

    def detectable(self, confidence: float) -> Detectable:
        if self.counts is not None:
            discordance = self.counts.discordant / self.counts.n
            return detectable_by_mcnemar(self.counts.n, discordance, self.counts.difference, confidence)
        if isinstance(self.spread, SeedSpread):
            return detectable_by_seeds(self.spread, confidence)
        return detectable_by_questions(self.spread, confidence)


def _step(measure: Measure, *tables_SQ: np.ndarray) -> float:
    """The least change of one question's contribution: an answer is 1; a token is the least contribution there is."""
    if measure.step == "answer":
        return 1.0
    if measure.step is None:
        return 0.0
    return min((float(np.abs(table[table != 0]).min()) for table in tables_SQ if table.any()), default=0.0)
