"""The arms of a study held against its baseline, by every measure of every evaluation, from the file of results alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mce_llm.eval.comparing.measure_comparison import compare_measures
from mce_llm.eval.comparing.measure_outcome import MeasureComparison, MeasureValues
from mce_llm.eval.comparing.measures import ACCURACY, MEASURES, Measure
from mce_llm.eval.comparing.question_values import TokenSums, check_same_tokens
from mce_llm.running.messages import counted
from mce_llm.studies.contrasts import ContrastResult, compare_contrasts
from mce_llm.studies.definition import Evaluation, Study
from mce_llm.studies.results import RunResult

Values = dict[str, dict[Hashable, np.ndarray]]
"""Arm → training seed → what each question contributes, (n,)."""


@dataclass(frozen=True)
class EvaluationComparison:
    """What one evaluation says of the arms.

    Attributes:
        evaluation: Which.
        questions: How many different questions were asked.
        asked: The same with copies.
        comparisons: A comparison a measure; the primary one first where this evaluation has it.
        values: Name of a measure → arm → training seed → the value of that run.
        contrasts: Arms held against each other by the primary measure, where this evaluation has it.
    """

    evaluation: Evaluation
    questions: int
    asked: int
    comparisons: tuple[MeasureComparison, ...]
    values: Mapping[str, Mapping[str, Mapping[Hashable, float]]]
    contrasts: tuple[ContrastResult, ...] = ()


@dataclass(frozen=True)
class StudyComparison:
    """What a study says so far.

    Attributes:
        study: The study.
        begun: Runs with results.
        finished: Those of them whose results are all there.
        planned: All runs.
        evaluations: That of the primary measure first.
        notes: What a reader must know, in words.
    """

    study: Study
    begun: int
    finished: int
    planned: int
    evaluations: tuple[EvaluationComparison, ...]
    notes: tuple[str, ...]

    @property
    def extent(self) -> str:
        """How many runs the comparison is of, in words."""
        partly = f", {self.finished} of them with every evaluation" * (self.begun != self.finished)
        return f"{self.begun} of {counted(self.planned, 'run')}{partly}"

    @property
    def contrasts(self) -> tuple[ContrastResult, ...]:
        """Arms held against each other by the primary measure."""
        return tuple(result for item in self.evaluations for result in item.contrasts)

    @property
    def primary(self) -> MeasureComparison | None:
        """The comparison by the primary measure; None where there are no results for it yet."""
        return next((found for item in self.evaluations for found in item.comparisons if found.primary), None)

    @property
    def undecided(self) -> str | None:
        """Why there is no comparison by the primary measure; None where there is one."""
        if self.primary is not None:
            return None
        named = self.study.primary
        if not self.evaluations:
            return "nothing can be compared yet: no arm has a seed in common with the baseline"
        if all(item.evaluation.name != named.evaluation for item in self.evaluations):
            return (
                f"nothing is concluded yet: the primary measure, {named.measure} of {named.evaluation}, is not there for an arm "
                "and the baseline with the same seed"
            )
        return (
            f"nothing is concluded: the primary measure, {named.measure} of {named.evaluation}, was not measured in every "
            "run, as no question has tokens of that kind"
        )

    def to_dict(self) -> dict[str, Any]:
        """The whole comparison as `json.dumps` takes it."""
        primary = self.primary
        return {
            "study": self.study.name,
            "baseline": self.study.baseline.name,
            "primary": dict(vars(self.study.primary)),
            "confidence": self.study.confidence,
            "finished": self.finished,
            "planned": self.planned,
            "verdict": self.undecided if primary is None else primary.verdict,
            "contrasts": [asdict(contrast) for contrast in self.contrasts],
            "evaluations": {
                item.evaluation.name: {
                    "questions": item.questions,
                    "asked": item.asked,
                    "measures": [found.to_dict() for found in item.comparisons],
                    "values": {
                        name: {arm: dict(seeds) for arm, seeds in arms.items()}
                        for name, arms in item.values.items()
                    },
                }
                for item in self.evaluations
            },
            "notes": list(self.notes),
        }


def compare_study(
    study: Study, results: Mapping[tuple[str, int], RunResult], notes: Sequence[str] = ()
) -> StudyComparison:
    """Compare the arms of a study by what is finished.

    Args:
        study: The study.
        results: What is in its file.
        notes: What a reader must know of the results; see `notes.notes_of`.

    Returns:
        The comparison. An arm without a seed that the baseline has, too, is not in it.

    Raises:
        EvaluationError: Runs measured different tokens.
    """
    compared = []
    ordered = sorted(study.evaluations, key=lambda item: item.name != study.primary.evaluation)
    for evaluation in ordered:
        found = {
            (arm.name, seed): results[arm.name, seed].evaluations[evaluation.name]
            for arm, seed in study.runs()
            if (arm.name, seed) in results and evaluation.name in results[arm.name, seed].evaluations
        }
        if (item := _compared(study, evaluation, found)) is not None:
            compared.append(item)
    runs = study.runs()
    begun = [result for arm, seed in runs if (result := results.get((arm.name, seed))) is not None]
    names = {evaluation.name for evaluation in study.evaluations}
    finished = [result for result in begun if names <= set(result.evaluations)]
    return StudyComparison(study, len(begun), len(finished), len(runs), tuple(compared), tuple(notes))


def _compared(
    study: Study, evaluation: Evaluation, found: Mapping[tuple[str, int], Mapping[str, Any]]
) -> EvaluationComparison | None:
    """One evaluation; None where no arm has a seed of the baseline's."""
    base = study.baseline.name
    seeds = {seed for arm, seed in found if arm == base}
    names = [
        arm.name for arm in study.arms if any(name == arm.name and seed in seeds for name, seed in found)
    ]
    if len(names) < 2:
        return None
    runs = {key: line for key, line in found.items() if key[0] in names}
    primary = study.primary.measure if study.primary.evaluation == evaluation.name else None
    tables = _tables(runs, primary)
    smallest = study.primary.smallest_difference
    measured = any(measure.name == primary for measure, _ in tables)
    comparisons = compare_measures(
        [
            MeasureValues(measure, values[base], {name: values[name] for name in names if name != base})
            for measure, values in tables
        ],
        primary=primary if measured else None,
        confidence=study.confidence,
        smallest_differences={primary: smallest} if primary and measured and smallest is not None else None,
        baseline_name=base,
    )
    contrasts: tuple[ContrastResult, ...] = ()
    for measure, values in tables:
        if measure.name == primary:
            contrasts = compare_contrasts(
                study.contrasts,
                measure,
                dict(values),
                confidence=study.confidence,
                smallest_difference=smallest,
            )
    questions = next(iter(runs.values()))["questions"]
    return EvaluationComparison(
        evaluation,
        questions["count"],
        questions["asked"],
        comparisons,
        {
            measure.name: {
                arm: {seed: float(np.mean(column)) for seed, column in of_arm.items()}
                for arm, of_arm in values.items()
            }
            for measure, values in tables
        },
        contrasts,
    )


def _tables(
    runs: Mapping[tuple[str, int], Mapping[str, Any]], primary: str | None
) -> list[tuple[Measure, Values]]:
    """Every measure that all runs have, with what each question contributes to it; the primary one must be among them."""

    def by_arm(columns: Mapping[tuple[str, int], np.ndarray]) -> Values:
        found: Values = {}
        for (arm, seed), column in columns.items():
            found.setdefault(arm, {})[seed] = column
        return found

    if all("score" in line["values"] for line in runs.values()):
        return [
            (ACCURACY, by_arm({key: np.array(line["values"]["score"], float) for key, line in runs.items()}))
        ]
    sums = {key: token_sums(line["values"]) for key, line in runs.items()}
    common = _in_common(sums)
    if primary is None or all(MEASURES[primary] in found.measures for found in common.values()):
        sums = common
    check_same_tokens({f"{arm}, seed {seed}": found for (arm, seed), found in sums.items()})
    first = next(iter(sums.values()))
    return [
        (measure, by_arm({key: found.contributions(measure) for key, found in sums.items()}))
        for measure in first.measures
        if all(measure in found.measures for found in sums.values())
    ]


def _in_common(sums: Mapping[tuple[str, int], TokenSums]) -> dict[tuple[str, int], TokenSums]:
    """The groups of tokens that all runs have: lines that were kept small have fewer."""
    first = next(iter(sums.values()))
    groups = [name for name in first.groups if all(name in found.groups for found in sums.values())]
    bins = [name for name in first.calibration if all(name in found.calibration for found in sums.values())]
    return {
        key: TokenSums(
            {name: found.groups[name] for name in groups}, {name: found.calibration[name] for name in bins}
        )
        for key, found in sums.items()
    }


def token_sums(values: Mapping[str, Any]) -> TokenSums:
    """The columns of an evaluation of likelihoods as arrays.

    Args:
        values: `values` of a line of results.jsonl.
    """

    def arrays(part: str) -> dict[str, dict[str, np.ndarray]]:
        return {
            group: {name: np.array(column, dtype=np.float64) for name, column in columns.items()}
            for group, columns in values[part].items()
        }

    return TokenSums(arrays("groups"), arrays("calibration"))
