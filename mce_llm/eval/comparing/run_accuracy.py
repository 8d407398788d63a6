"""The accuracy of one run over distinct questions, with its interval; the same in comparisons and where nothing is compared."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from mce_llm.eval.comparing.comparison_outcome import RunAccuracy
from mce_llm.eval.comparing.distinct_questions import DistinctQuestions
from mce_llm.eval.comparing.paired import mean_interval
from mce_llm.eval.intervals import Interval, wilson_interval
from mce_llm.eval.saved_runs import SavedRun


def fallback_share(run: SavedRun) -> float:
    """Share of the answers that were found without a marker, as the last number or expression."""
    return sum(item["found_by"] == "last_number" for item in run.items) / len(run.items)


def truncated_share(run: SavedRun) -> float:
    """Share of the answers that were cut off at the limit on new tokens."""
    return sum(item["finished"] == "length" for item in run.items) / len(run.items)


def is_all_or_nothing(scores: Sequence[Fraction]) -> bool:
    """Whether each question is right or wrong, and none in parts."""
    return all(score in (0, 1) for score in scores)


def run_accuracy(run: SavedRun, label: str, distinct: DistinctQuestions, confidence: float) -> RunAccuracy:
    """Count one run.

    Args:
        run: The run.
        label: Its short name.
        distinct: Its questions.
        confidence: Of the interval: Wilson's where each question is right or wrong, else Student's over questions.

    Returns:
        The accuracy, each distinct question counted once.
    """
    scores = distinct.scores(run)
    samples = int(run.summary["num_samples"])
    if is_all_or_nothing(scores) and samples == 1:
        interval = wilson_interval(int(sum(scores)), distinct.n, confidence)
    elif distinct.n == 1:
        interval = Interval(0.0, 1.0)
    else:
        low, high = mean_interval([float(score) for score in scores], confidence)
        interval = Interval(max(0.0, low), high)
    return RunAccuracy(
        label=label,
        path=str(run.path),
        model=str(run.config["settings"].get("model", "")),
        n=distinct.n,
        asked=distinct.asked,
        num_samples=samples,
        correct=sum(item["correct"] for item in run.items),
        accuracy=float(sum(scores, Fraction()) / distinct.n),
        interval=interval,
        truncated=truncated_share(run),
        fallback=fallback_share(run),
    )
