"""A table from the summaries of a study's runs: measures that are described, and that kept lines have no values of questions for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from made_pages import markdown_table

from mce_llm.studies.definition import Study
from mce_llm.studies.results import RunResult

# What a run's summary says of the groups and calibration that kept lines have no values of.
BESIDE: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "nats per token of final answers": lambda summary: summary["groups"]["answer"]["nats_per_token"],
    "nats per token of words": lambda summary: summary["groups"]["words"]["nats_per_token"],
    "expected calibration error, numbers": lambda summary: summary["calibration_error"]["numbers"],
    "expected calibration error, all tokens": lambda summary: summary["calibration_error"]["all"],
}


def beside(study: Study, results: Mapping[tuple[str, int], RunResult]) -> list[str]:
    """What the protocol describes and kept lines have no values of questions for, from the summaries of the runs.

    Returns:
        A table of Markdown with differences from the baseline over the seeds that both have, one for each evaluation of
        likelihoods.
    """
    lines: list[str] = []
    for evaluation in study.evaluations:
        found = {
            key: result.evaluations[evaluation.name]["summary"]
            for key, result in results.items()
            if "calibration_error" in result.evaluations.get(evaluation.name, {}).get("summary", {})
        }
        if not any(arm == study.baseline.name for arm, _ in found):
            continue
        others = [arm.name for arm in study.arms if arm.name != study.baseline.name]
        rows = [
            [title, *_told_over_seeds(study.baseline.name, others, found, read)]
            for title, read in BESIDE.items()
            if all(_has(summary, read) for summary in found.values())
        ]
        lines += [
            f"**{evaluation.name[:1].upper()}{evaluation.name[1:]}: described beside it**",
            "",
            *markdown_table(["measure", study.baseline.name, *others], rows),
            "",
            "Means over training seeds, from the summary of each run, without intervals; differences over the seeds that both "
            "have, and in how many of them the arm is higher.",
            "",
        ]
    return lines


def _has(summary: Mapping[str, Any], read: Callable[[Mapping[str, Any]], float]) -> bool:
    try:
        read(summary)
    except KeyError:  # solutions that mark no answer
        return False
    return True


def _told_over_seeds(
    baseline: str,
    others: Sequence[str],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], float],
) -> list[str]:
    """The baseline's mean, and of each other arm the mean difference and how many of its seeds are higher."""
    values = {key: read(summary) for key, summary in found.items()}
    cells = [f"{fmean(value for (arm, _), value in values.items() if arm == baseline):.4f}"]
    for other in others:
        differences = [
            value - values[baseline, seed]
            for (arm, seed), value in values.items()
            if arm == other and (baseline, seed) in values
        ]
        higher = sum(difference > 0 for difference in differences)
        told = f"{fmean(differences):+.4f} ({higher} of {len(differences)})" if differences else "–"
        cells.append(told.replace("-", "−"))
    return cells
