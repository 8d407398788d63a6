"""What the template's sections about likelihoods are filled with: measures as rows of text, and the pictures."""

from __future__ import annotations

from typing import Any

from mce_llm.eval.comparing.likelihood_outcome import LikelihoodComparison
from mce_llm.eval.comparing.measure_verdicts import amount, interval_words, value_text
from mce_llm.eval.comparing.measures import in_order, measure_named
from mce_llm.eval.comparing.verdicts import p_text, percent
from mce_llm.eval.reporting.drawing import Chart
from mce_llm.eval.reporting.likelihood_charts import measures_chart, reliability_chart
from mce_llm.eval.reporting.likelihood_sections import LikelihoodSection
from mce_llm.eval.reporting.looks import printable
from mce_llm.eval.reporting.trainings_table import trainings_table

Cells = dict[str, Any]


def likelihood_context(section: LikelihoodSection) -> Cells:
    """Everything that the page says about the likelihoods on one data set.

    Args:
        section: The runs and their comparison.

    Returns:
        Rows of text, and the pictures under `charts`.
    """
    comparison = section.comparison
    charts: list[Chart | None] = []
    if comparison is not None:
        charts += [measures_chart(section, comparison, unit) for unit in ("nats per token", "points")]
    charts.append(reliability_chart(section))
    told = [str(mismatch) for mismatch in comparison.mismatches] if comparison else []
    notes = [note for note in section.notes if not any(text in note.text for text in told)]
    return {
        "key": section.key,
        "title": printable(section.title),
        "trainings": trainings_table(section.trainings),
        "not_compared": section.not_compared,
        "verdict": comparison and printable(comparison.verdict),
        "pairing": comparison and printable(comparison.pairing),
        "mismatches": [
            printable(f"{item.run} against {item.reference}: {item}") for item in comparison.mismatches
        ]
        if comparison
        else [],
        "warnings": [printable(note.text) for note in notes if note.level == "warning"],
        "notes": [printable(note.text) for note in notes if note.level == "note"],
        "arms": _arms(section, comparison) if comparison else [],
        "confidence": comparison and percent(comparison.confidence),
        "several": comparison is not None and len(comparison.arms) > 1,
        "held": comparison
        and (
            "over training seeds and questions"
            if comparison.pairs > 1
            else "over questions, for these trained models alone"
        ),
        "runs": _runs(section),
        "charts": [chart for chart in charts if chart is not None],
    }


def _arms(section: LikelihoodSection, comparison: LikelihoodComparison) -> list[Cells]:
    """A table for each arm: a row a measure."""
    found = []
    for place, arm in enumerate(comparison.arms):
        rows = []
        for measured in comparison.measures:
            outcome, measure = measured.arms[place], measured.measure
            rows.append(
                {
                    "name": measure.name,
                    "title": measure.title,
                    "unit": measure.unit,
                    "a": value_text(measure, outcome.baseline_value),
                    "b": value_text(measure, outcome.value),
                    "difference": amount(measure, outcome.difference, sign=True),
                    "interval": interval_words(measure, outcome.interval),
                    "together": interval_words(measure, outcome.simultaneous),
                    "p": p_text(outcome.p_value),
                    "p_holm": p_text(outcome.p_holm),
                    "finding": outcome.finding if outcome.found else "–",
                }
            )
        found.append(
            {
                "letter": arm.letter,
                "name": printable(arm.name),
                "baseline": printable(comparison.baseline),
                "look": section.sides[place + 1][0].look,
                "rows": rows,
            }
        )
    return found


def _runs(section: LikelihoodSection) -> Cells:
    """A row a run, a column a measure."""
    names = in_order([measure.name for member in section.members for measure in member.sums.measures])
    rows = []
    for member in section.members:
        has = {measure.name for measure in member.sums.measures}
        rows.append(
            {
                "look": member.look,
                "cells": [
                    value_text(
                        measure_named(name), float(member.sums.contributions(measure_named(name)).mean())
                    )
                    if name in has
                    else "–"
                    for name in names
                ],
            }
        )
    return {"names": names, "rows": rows}
