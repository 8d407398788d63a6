"""`mce-llm compare`: reads evaluations, compares them, prints or writes the outcome.

The statistics are in `mce_llm.eval.comparing`, the tables in `compare_report`, `arms_report` and `likelihoods_report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mce_llm.commands.arms_report import print_arms
from mce_llm.commands.compare_report import print_comparison
from mce_llm.commands.likelihoods_report import print_likelihoods
from mce_llm.eval.comparing.comparison import Comparison, compare_runs
from mce_llm.eval.comparing.likelihood_outcome import LikelihoodComparison
from mce_llm.eval.comparing.likelihoods import compare_likelihoods
from mce_llm.eval.comparing.pairing import Arrangement, arrange_groups, arrange_runs
from mce_llm.eval.comparing.several_arms import ArmsComparison, compare_arms
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.saved_evaluations import Evaluation, check_one_kind, read_evaluation
from mce_llm.eval.saved_runs import SavedRun
from mce_llm.running.files import write_json
from mce_llm.running.terminal import DataConsole
from mce_llm.running.visible_text import json_text

Groups = tuple[Sequence[Path], Sequence[tuple[str | None, Sequence[Path]]]]
"""Folders of the baseline, and (name, folders) of each arm."""


def read_arrangement(
    folders: Sequence[Path], groups: Groups | None = None, *, allow_differences: bool = False
) -> Arrangement[Evaluation]:
    """Read evaluations and find out which is held against which.

    Args:
        folders: Two of them, A and B; or more, whose trainings have recorded their methods and seeds.
        groups: In place of these, which belongs to which arm.
        allow_differences: Accept groups that the records contradict.

    Returns:
        The arrangement: of evaluations of answers, or of likelihoods.

    Raises:
        EvaluationError: It is not clear which is held against which, a folder holds no finished evaluation, or there are
            both kinds.
    """
    if groups is None:
        runs = [read_evaluation(folder) for folder in folders]
        check_one_kind(runs)
        return arrange_runs(runs)
    baseline = [read_evaluation(folder) for folder in groups[0]]
    arms = [(name, [read_evaluation(folder) for folder in of_arm]) for name, of_arm in groups[1]]
    check_one_kind([*baseline, *(run for _, of_arm in arms for run in of_arm)])
    return arrange_groups(baseline, arms, allow_differences=allow_differences)


def run_compare(
    folders: Sequence[Path],
    *,
    groups: Groups | None = None,
    primary: str | None = None,
    smallest_difference: float | None = None,
    confidence: float,
    resamples: int,
    seed: int,
    allow_differences: bool,
    listed: int,
    output: Path | None,
    json_output: bool,
) -> None:
    """Compare evaluations and print the outcome.

    Args:
        folders: A B, or more with recorded trainings.
        groups: In place of these, which belongs to which arm.
        primary: Of likelihoods: the measure that decides.
        smallest_difference: The smallest difference of it that matters.
        confidence: Coverage of the intervals.
        resamples: Drawings of the bootstrap.
        seed: Of its random numbers.
        allow_differences: Compare runs of different settings, with a warning.
        listed: Questions won and lost to print, of each so many.
        output: Write the outcome there as JSON.
        json_output: Print JSON in place of tables.

    Raises:
        EvaluationError: The runs cannot be compared, or the output cannot be written.
        IntervalError: The confidence or the number of resamples is out of range.
    """
    arrangement = read_arrangement(folders, groups, allow_differences=allow_differences)
    comparison: Comparison | ArmsComparison | LikelihoodComparison
    answers = _of_answers(arrangement)
    if answers is None:
        comparison = compare_likelihoods(
            arrangement,
            primary=primary,
            smallest_difference=smallest_difference,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            allow_differences=allow_differences,
        )
    elif primary is not None or smallest_difference is not None:
        raise EvaluationError(
            "--primary and --smallest-difference are for likelihoods; evaluations of answers have one measure, their accuracy"
        )
    else:
        comparison = _compared(answers, confidence, resamples, seed, allow_differences)
    if output is not None:
        try:
            write_json(output, comparison.to_dict())
        except OSError as error:
            raise EvaluationError(f"cannot write to {output}: {error.strerror or error}") from error
    if json_output:
        print(json_text(comparison.to_dict()))
    elif isinstance(comparison, LikelihoodComparison):
        print_likelihoods(comparison, DataConsole(), listed=listed)
    elif isinstance(comparison, ArmsComparison):
        print_arms(comparison, DataConsole(), listed=listed)
    else:
        print_comparison(comparison, DataConsole(), listed=listed)


def _of_answers(arrangement: Arrangement[Evaluation]) -> Arrangement[SavedRun] | None:
    """The same, where its runs are evaluations of answers; None for likelihoods."""
    return (
        cast("Arrangement[SavedRun]", arrangement)
        if all(isinstance(run, SavedRun) for run in arrangement.runs)
        else None
    )


def _compared(
    arrangement: Arrangement[SavedRun], confidence: float, resamples: int, seed: int, allow_differences: bool
) -> Comparison | ArmsComparison:
    """One arm as it is, several with a correction for their number."""
    if len(arrangement.arms) > 1:
        return compare_arms(
            arrangement,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            allow_differences=allow_differences,
        )
    return compare_runs(
        arrangement.pairs(arrangement.arms[0]),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        allow_differences=allow_differences,
        pairing=arrangement.how,
        doubts=arrangement.doubts,
        name=arrangement.arms[0].name,
    )
