"""What the page's template is filled with: the numbers of sections and trainings as rows of text.

Nothing is formatted in the template and nothing is read here; HTML is made in `page`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mce_llm.eval.comparing.comparison import Comparison
from mce_llm.eval.comparing.verdicts import p_text, percent, points
from mce_llm.eval.reporting.browsing import FORMS
from mce_llm.eval.reporting.charts import accuracy_chart, by_arm, difference_chart, outcomes_chart
from mce_llm.eval.reporting.collect import Training
from mce_llm.eval.reporting.drawing import Chart
from mce_llm.eval.reporting.looks import Look, printable
from mce_llm.eval.reporting.sections import Member, Section
from mce_llm.eval.reporting.training_charts import (
    SPECTRA,
    Quantity,
    curve_chart,
    last_spectra_chart,
    quantities_of,
    spectra_chart,
)
from mce_llm.eval.reporting.trainings_table import trainings_table
from mce_llm.eval.wording import accuracy_text, bounds_text, share_text

Cells = dict[str, Any]


def section_context(section: Section) -> Cells:
    """Everything that the page says about one task, but for the questions.

    Args:
        section: The task's runs and their comparison.

    Returns:
        Rows of text, and the pictures under `charts`.
    """
    comparison = section.comparison
    charts: list[Chart | None] = [accuracy_chart(section)]
    if comparison is not None:
        charts += [difference_chart(section, comparison), outcomes_chart(section, comparison)]
    letters = section.sides
    return {
        "key": section.key,
        "title": printable(section.title),
        "data": printable(section.data),
        "letters": letters,
        "trainings": trainings_table(section.trainings),
        "conclusion": section.conclusion and printable(section.conclusion),
        "not_compared": section.not_compared,
        "verdict": comparison and comparison.verdict,
        "pairing": comparison and printable(comparison.pairing),
        "sides": [_side(section, arm, letter) for arm, letter in zip("AB", letters, strict=True)]
        if comparison
        else [],
        "figures": _figures(section, comparison) if comparison else [],
        "mismatches": [
            printable(f"{item.run} against {item.reference}: {item}") for item in comparison.mismatches
        ]
        if comparison
        else [],
        "warnings": [text for text, warns in _notes(section) if warns],
        "notes": [text for text, warns in _notes(section) if not warns],
        "runs": [_run(member) for member in by_arm(section)],
        "several_samples": any(member.run.summary["num_samples"] > 1 for member in section.members),
        "pairs": _pairs(comparison) if comparison else [],
        "overall": _overall(comparison) if comparison else None,
        "methods": _methods(comparison) if comparison else "",
        "forms": _forms(section),
        "votes": _votes(section),
        "charts": [chart for chart in charts if chart is not None],
    }


def training_context(trainings: Sequence[tuple[Look, Training | None]]) -> Cells:
    """Everything that the page says about the trainings behind the runs.

    Args:
        trainings: Each with its look; None where the folder is not known.

    Returns:
        Rows of text, what is missing in words, and the pictures.
    """
    known = [(look, training) for look, training in trainings if training is not None]
    unknown = ", ".join(look.label for look, training in trainings if training is None)
    missing = [
        f"no training folder found for {unknown}, so there are no curves: a folder with trainer_state.json is looked for "
        "at the path of the evaluated model, and above the evaluation"
    ] * bool(unknown)
    missing += [f"{look.label}: {text}" for look, training in known for text in training.missing]
    quantities = quantities_of(training for _, training in known)
    for quantity in quantities:
        for name, kind in quantity.logged if not quantity.optional else ():
            without = [look.tag for look, training in known if training.history and not training.curve(name)]
            if without:
                missing.append(f"{quantity.titled(kind)}: not logged by {', '.join(without)} ({name})")
    curves = [(quantity, curve_chart(quantity, known)) for quantity in quantities]
    spectra = [spectra_chart(kind, place, subject) for kind in SPECTRA for place, subject in enumerate(known)]
    return {
        "any": bool(trainings),
        "missing": missing,
        "curves": [(chart, quantity.note) for quantity, chart in curves if chart is not None],
        "last_spectra": [chart for kind in SPECTRA if (chart := last_spectra_chart(kind, known)) is not None],
        "spectra": [chart for chart in spectra if chart is not None],
        "rows": [_training(look, training, quantities) for look, training in known],
        "quantities": [quantity.unit for quantity in quantities if quantity.held_out],
    }


def _signed(value: float) -> str:
    return points(value, sign=True)


def _side(section: Section, arm: str, letter: str) -> Cells:
    members = [member for member in section.members if member.look.arm == arm]
    called = section.comparison.name if section.comparison and arm == "B" else None
    return {
        "arm": letter,
        "role": "baseline" if arm == "A" else "held against it",
        "colour": members[0].look.colour,
        "names": [member.look.name for member in members],
        "called": printable(called) if called else None,
    }


def _figures(section: Section, comparison: Comparison) -> list[Cells]:
    """The few numbers that stand out."""
    several = len(comparison.pairs) > 1
    found = []
    for place, (letter, side) in enumerate(zip(comparison.sides, "ab", strict=True)):
        accuracies = [getattr(pair, side) for pair in comparison.pairs]
        mean = sum(item.accuracy for item in accuracies) / len(accuracies)
        detail = f"mean of {len(accuracies)} runs" if several else accuracies[0].right
        found.append(
            {
                "name": f"accuracy of {letter}",
                "value": accuracy_text(mean),
                "detail": detail,
                "colour": section.colours[place],
            }
        )
    low, high = comparison.interval
    found.append(
        {
            "name": f"difference {comparison.sides[1]} − {comparison.sides[0]}",
            "value": f"{_signed(comparison.difference)} points",
            "detail": f"{percent(comparison.confidence)} interval {_signed(low)} to {_signed(high)}",
            "colour": "",
        }
    )
    if comparison.seeds is not None:
        seeds = comparison.seeds
        found.append(
            {
                "name": "spread over seeds",
                "value": f"± {points(seeds.sd)} points",
                "detail": f"standard deviation of {seeds.seeds} differences; {points(seeds.sd_by_chance)} "
                "from single answers alone",
                "colour": "",
            }
        )
    else:
        pair = comparison.pairs[0]
        found.append(
            {
                "name": "test of no difference",
                "value": p_text(pair.p_value),
                "detail": pair.test,
                "colour": "",
            }
        )
    if section.arm is not None:
        low, high = section.arm.simultaneous
        found.append(
            {
                "name": "corrected for the number of arms",
                "value": p_text(section.arm.p_holm),
                "detail": f"Holm; alone {p_text(section.arm.p_value)}; simultaneous interval {_signed(low)} to "
                f"{_signed(high)}",
                "colour": "",
            }
        )
    detectable = comparison.detectable if section.arm is None else section.arm.detectable
    if detectable.difference is not None:
        needed = (
            ""
            if detectable.needed is None
            else f"; what was seen would take {detectable.needed:,} {detectable.unit}"
        )
        found.append(
            {
                "name": "smallest detectable difference",
                "value": f"{points(detectable.difference)} points",
                "detail": f"found in {percent(detectable.power)} of cases by {detectable.method}{needed}",
                "colour": "",
            }
        )
    return found


def _notes(section: Section) -> list[tuple[str, bool]]:
    """The section's notes, but for what the banner says already; each with whether it is a warning."""
    told = [str(mismatch) for mismatch in section.comparison.mismatches] if section.comparison else []
    return [
        (printable(note.text), note.level == "warning")
        for note in section.notes
        if not any(text in note.text for text in told)
    ]


def _run(member: Member) -> Cells:
    summary, accuracy = member.run.summary, member.accuracy
    answers = summary["n"] * summary["num_samples"]
    return {
        "look": member.look,
        "accuracy": accuracy_text(accuracy.accuracy),
        "interval": bounds_text(accuracy.interval),
        "confidence": percent(summary["confidence"]),
        "right": accuracy.right,
        "truncated": share_text(accuracy.truncated),
        "fallback": share_text(accuracy.fallback),
        "tokens": f"{summary['new_tokens'] / answers:,.0f}",
        "speed": f"{summary['tokens_per_second']:,.0f}",
    }


def _pairs(comparison: Comparison) -> list[Cells]:
    rows = []
    for number, pair in enumerate(comparison.pairs, start=1):
        rows.append(
            {
                "number": number,
                "a": accuracy_text(pair.a.accuracy),
                "b": accuracy_text(pair.b.accuracy),
                "counts": pair.counts,
                "difference": _signed(pair.difference),
                "interval": f"{_signed(pair.interval.low)} to {_signed(pair.interval.high)}",
                "method": pair.interval_method,
                "p": p_text(pair.p_value),
                "test": pair.test,
            }
        )
    return rows


def _overall(comparison: Comparison) -> Cells | None:
    if len(comparison.pairs) == 1:
        return None
    low, high = comparison.interval
    return {
        "difference": _signed(comparison.difference),
        "interval": f"{_signed(low)} to {_signed(high)}",
        "p": p_text(comparison.p_value),
    }


def _methods(comparison: Comparison) -> str:
    """How intervals and tests of the table of pairs were computed."""
    pair = comparison.pairs[0]
    of_pairs = (
        f"Of a pair: {percent(comparison.confidence)} interval: {pair.interval_method}; test: {pair.test}."
    )
    if len(comparison.pairs) == 1:
        return of_pairs
    low, high = comparison.bootstrap
    return (
        f"{of_pairs} It holds for these trained models alone. Over all pairs: {comparison.interval_method}. The plain "
        f"bootstrap over seeds and questions, too narrow for few seeds, gives {_signed(low)} to {_signed(high)}."
    )


def _forms(section: Section) -> Cells:
    """How the answers were found: a column a form, in each how many and how many of them were right."""
    counted = [
        form for form in FORMS if any(form in member.run.summary["found_by"] for member in section.members)
    ]
    counted += sorted(
        {form for member in section.members for form in member.run.summary["found_by"]} - set(FORMS)
    )
    rows = []
    for member in by_arm(section):
        summary = member.run.summary
        cells = []
        for form in counted:
            count, right = (summary[name].get(form, 0) for name in ("found_by", "correct_by"))
            cells.append(f"{count:,} ({accuracy_text(right / count)} right)" if count else "0")
        rows.append({"look": member.look, "cells": cells})
    return {"names": [FORMS.get(form, form) for form in counted], "rows": rows}


def _votes(section: Section) -> Cells | None:
    """pass@k and the majority's accuracy, where there are several samples a question."""
    summaries = [(member.look, member.run.summary) for member in by_arm(section)]
    ks = sorted({k for _, summary in summaries for k in summary.get("pass_at") or {}}, key=int)
    majority = any(summary.get("majority") for _, summary in summaries)
    if not ks and not majority:
        return None
    rows = []
    for look, summary in summaries:
        passed, voted = summary.get("pass_at") or {}, summary.get("majority") or {}
        cells = [accuracy_text(passed[k]) if k in passed else "–" for k in ks]
        if majority:
            ends = f" ({bounds_text(voted['interval'])})" if "interval" in voted else ""
            cells.append(accuracy_text(voted["accuracy"]) + ends if "accuracy" in voted else "–")
        rows.append({"look": look, "samples": summary["num_samples"], "cells": cells})
    names = [f"pass@{k}" for k in ks] + ["majority of the samples"] * majority
    copies = any(member.accuracy.asked > member.accuracy.n for member in section.members)
    return {"names": names, "rows": rows, "copies": copies}


def _training(look: Look, training: Training, quantities: Sequence[Quantity]) -> Cells:
    cells = []
    for quantity in quantities:
        if quantity.held_out:
            points_seen = training.curve(quantity.held_out)
            cells.append(f"{points_seen[-1][1]:.4f}" if points_seen else "not logged")
    steps = max((entry["step"] for entry in training.history), default=0)
    return {"look": look, "folder": str(training.folder), "steps": f"{steps:,}", "cells": cells}
