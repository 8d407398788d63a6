"""Comparing saved likelihoods of reference solutions: a baseline and one arm or several, by every measure there is.

`compare_likelihoods` checks that runs can be compared, takes what each question contributes, and calls `compare_measures`. It
neither prints nor reads files; `mce-llm compare` and the report do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mce_llm.eval.comparing.comparability import check_runs, common_notes, two_seeds, warnings_first
from mce_llm.eval.comparing.distinct_questions import DistinctQuestions
from mce_llm.eval.comparing.evaluations import SavedEvaluation
from mce_llm.eval.comparing.labels import run_labels
from mce_llm.eval.comparing.likelihood_outcome import (
    LikelihoodArm,
    LikelihoodComparison,
    QuestionLikelihood,
    RunLikelihood,
)
from mce_llm.eval.comparing.measure_checks import wrong_size
from mce_llm.eval.comparing.measure_comparison import compare_measures
from mce_llm.eval.comparing.measure_outcome import MeasureComparison, MeasureValues
from mce_llm.eval.comparing.measures import measure_named
from mce_llm.eval.comparing.notes import Note
from mce_llm.eval.comparing.pairing import Arrangement
from mce_llm.eval.comparing.question_tails import RESAMPLES
from mce_llm.eval.comparing.question_values import TokenSums, check_same_tokens
from mce_llm.eval.comparing.several_arms import LETTERS, arm_names
from mce_llm.eval.comparing.training_differences import training_overview
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import check_confidence
from mce_llm.eval.items import Item
from mce_llm.running.messages import counted

WITHOUT_PRIMARY = "all.nats"
"""The measure whose conclusion stands at the end where none was named as primary."""


_LISTED = {
    "all": "solution",
    "numbers": "numbers",
    "results": "results",
    "answer": "answer",
    "words": "words",
}


class LikelihoodRun(SavedEvaluation, Protocol):
    """A saved evaluation of likelihoods."""

    @property
    def items(self) -> Sequence[Item]:
        """The lines of `items.jsonl`, in the order of the questions."""


def compare_likelihoods(
    arrangement: Arrangement[Any],
    *,
    primary: str | None = None,
    smallest_difference: float | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    allow_differences: bool = False,
) -> LikelihoodComparison:
    """Compare likelihoods of one arm or several with those of a baseline.

    Args:
        arrangement: Runs of `LikelihoodRun`.
        primary: Name of the measure that decides, named before the runs were looked at; the others describe.
        smallest_difference: The smallest difference of it that matters, in its scale; needs `primary`.
        confidence: Of the intervals, each alone and those of all arms together.
        resamples: Drawings of the bootstrap over questions.
        seed: Of its random numbers.
        allow_differences: Compare runs whose prompt, scoring or dtype differs, with a warning. Questions and tokens must be
            the same.

    Returns:
        The comparison.

    Raises:
        EvaluationError: The runs cannot be compared, or there is no such measure.
        IntervalError: The confidence or the number of resamples is out of range.
    """
    check_confidence(confidence)
    _check_primary(primary, smallest_difference)
    if len(arrangement.arms) > len(LETTERS):
        raise EvaluationError(f"{len(arrangement.arms)} arms are given; the most are {len(LETTERS)}")
    runs: list[LikelihoodRun] = arrangement.runs
    mismatches = check_runs(runs, allow_differences=allow_differences)
    labels = dict(zip(map(id, runs), run_labels(runs), strict=True))
    distinct = DistinctQuestions.of(runs[0])
    if distinct.n == 1:
        raise EvaluationError(
            "an interval over questions needs two different ones at least, and there is one"
            + (f" ({distinct.asked:,} copies)" if distinct.asked > 1 else "")
        )
    sums = {id(run): TokenSums.of(run.items).distinct(distinct.places) for run in runs}
    check_same_tokens({labels[id(run)]: sums[id(run)] for run in runs})
    names = [
        f"{letter} ({name})" if name != letter else letter
        for letter, name in zip("A" + LETTERS, arm_names(arrangement), strict=False)
    ]
    pairs = len(arrangement.baseline.runs)
    compared = compare_measures(
        _tables(arrangement, sums, names[1:]),
        primary=primary,
        confidence=confidence,
        smallest_differences={} if smallest_difference is None else {str(primary): smallest_difference},
        baseline_name=names[0],
        resamples=resamples,
        seed=seed,
    )
    group = measure_named(primary or WITHOUT_PRIMARY).group or "all"
    trainings = training_overview(runs)
    notes = [Note("warning", f"compared all the same: {doubt}") for doubt in arrangement.doubts]
    for arm, letter in zip(arrangement.arms, LETTERS, strict=False):
        notes += common_notes(arrangement.pairs(arm), mismatches, distinct, trainings, ("A", letter))
    notes += [*two_seeds(pairs), *_on_measures(compared, primary)]
    return LikelihoodComparison(
        task="likelihood",
        title=runs[0].data_title,
        baseline=names[0],
        arms=tuple(
            LikelihoodArm(
                letter, name, _questions(arrangement.baseline.runs, arm.runs, sums, distinct, group)
            )
            for arm, letter, name in zip(arrangement.arms, LETTERS, names[1:], strict=False)
        ),
        pairs=pairs,
        n=distinct.n,
        asked=distinct.asked,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        primary=primary,
        listed_by=_LISTED[group],
        runs=tuple(_run_values(arrangement, sums, labels)),
        measures=compared,
        pairing=arrangement.how,
        trainings=trainings,
        mismatches=mismatches,
        notes=warnings_first(notes),
        verdict=_verdict(compared, primary),
    )


def _check_primary(primary: str | None, smallest_difference: float | None) -> None:
    """Refuse what cannot be a primary measure, or a smallest difference of it; all problems at once."""
    problems, measure = [], None
    if primary is None and smallest_difference is not None:
        problems.append(
            "a smallest difference that matters is one of the primary measure: name that too (--primary)"
        )
    if primary is not None:
        try:
            measure = measure_named(primary)
        except EvaluationError as error:
            problems.append(str(error))
    if smallest_difference is not None:
        problems += wrong_size(measure, smallest_difference)
    if problems:
        raise EvaluationError("; ".join(problems))


def _tables(
    arrangement: Arrangement[Any], sums: Mapping[int, TokenSums], names: Sequence[str]
) -> list[MeasureValues]:
    first = sums[id(arrangement.baseline.runs[0])]
    return [
        MeasureValues(
            measure,
            _values(arrangement.baseline.runs, sums, measure.name),
            {
                name: _values(arm.runs, sums, measure.name)
                for name, arm in zip(names, arrangement.arms, strict=True)
            },
        )
        for measure in first.measures
    ]


def _values(
    runs: Sequence[LikelihoodRun], sums: Mapping[int, TokenSums], measure: str
) -> dict[int, np.ndarray]:
    """Number of the pair, which stands for its training seed → contributions."""
    return {
        number: sums[id(run)].contributions(measure_named(measure))
        for number, run in enumerate(runs, start=1)
    }


def _run_values(
    arrangement: Arrangement[Any], sums: Mapping[int, TokenSums], labels: Mapping[int, str]
) -> list[RunLikelihood]:
    arms = (arrangement.baseline, *arrangement.arms)
    several = len(arrangement.baseline.runs) > 1
    found = []
    for number in range(len(arrangement.baseline.runs)):
        for arm, letter in zip(arms, "A" + LETTERS, strict=False):
            run = arm.runs[number]
            own = sums[id(run)]
            found.append(
                RunLikelihood(
                    tag=f"{letter}{number + 1}" if several else letter,
                    label=labels[id(run)],
                    path=str(run.path),
                    model=str(run.config["settings"].get("model", "")),
                    values={
                        measure.name: float(own.contributions(measure).mean()) for measure in own.measures
                    },
                )
            )
    return found


def _questions(
    baseline: Sequence[LikelihoodRun],
    arm: Sequence[LikelihoodRun],
    sums: Mapping[int, TokenSums],
    distinct: DistinctQuestions,
    group: str,
) -> tuple[QuestionLikelihood, ...]:
    a, b = (
        np.mean([sums[id(run)].groups[group]["nats"] for run in side], axis=0) for side in (baseline, arm)
    )
    tokens = sums[id(baseline[0])].groups[group]["tokens"]
    lines = baseline[0].first_samples
    found = [
        QuestionLikelihood(
            index=places[0],
            copies=len(places),
            question=lines[places[0]]["question"],
            gold=lines[places[0]]["gold"],
            tokens=float(tokens[unit]),
            a=float(a[unit]),
            b=float(b[unit]),
        )
        for unit, places in enumerate(distinct.places)
    ]
    return tuple(sorted(found, key=lambda question: question.difference))


def _on_measures(compared: Sequence[MeasureComparison], primary: str | None) -> list[Note]:
    notes = []
    if primary is None:
        notes.append(
            Note(
                "note",
                f"no measure was named as primary: {counted(len(compared), 'measure')} were compared, and a small p-value among "
                "so many is no evidence by itself. Name one before the runs are looked at (--primary answer.nats)",
            )
        )
    if any(comparison.measure.quantity == "ece" for comparison in compared):
        notes.append(
            Note(
                "note",
                "the plain calibration error of a model that is nearly calibrated comes out too high, so its interval can miss "
                "the true difference; the one less its bias does not",
            )
        )
    return notes


def _verdict(compared: Sequence[MeasureComparison], primary: str | None) -> str:
    """What the primary measure says, or the likelihood of all tokens; of one arm with its numbers."""
    decides = next(
        comparison for comparison in compared if comparison.measure.name == (primary or WITHOUT_PRIMARY)
    )
    if len(decides.arms) > 1:
        return decides.verdict
    title = decides.measure.title
    kind = " (the primary measure)" if primary else ""
    return f"{title[0].upper()}{title[1:]}{kind}: {decides.arms[0].verdict}"
