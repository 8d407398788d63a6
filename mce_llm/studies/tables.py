"""The tables of a study, as text cells; `markdown` writes them into a file, the command prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from mce_llm.eval.comparing.measure_outcome import ArmMeasure, MeasureComparison
from mce_llm.eval.comparing.measure_verdicts import amount, interval_words, value_text
from mce_llm.eval.comparing.verdicts import p_text, percent
from mce_llm.running.messages import counted
from mce_llm.running.visible_text import visible
from mce_llm.studies.comparing import EvaluationComparison, StudyComparison
from mce_llm.studies.definition import Study
from mce_llm.studies.estimating import duration_text
from mce_llm.studies.results import RunResult


@dataclass(frozen=True)
class TextTable:
    """A table of words and numbers.

    Attributes:
        title: What stands above it.
        header: Of each column; the first is of names, the others of numbers.
        rows: Cells.
        caption: What stands below it; may be empty.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def measure_table(item: EvaluationComparison, found: MeasureComparison) -> TextTable:
    """One measure: a row an arm, with difference, intervals and p-values.

    Args:
        item: The evaluation.
        found: One of its comparisons.
    """
    level, measure = percent(found.confidence), found.measure
    several = len(found.arms) > 1
    rows = [
        (
            f"{found.baseline} (baseline)",
            str(len(found.baseline_values)),
            value_text(measure, sum(found.baseline_values.values()) / len(found.baseline_values)),
            *("",) * (5 if several else 3),
        )
    ]
    for arm in found.arms:
        together = (interval_words(measure, arm.simultaneous),) if several else ()
        holm = (_p(arm.p_holm),) if several else ()
        rows.append(
            (
                arm.name,
                str(len(arm.seeds)),
                value_text(measure, arm.value),
                amount(measure, arm.difference, sign=True),
                interval_words(measure, arm.interval),
                *together,
                _p(arm.p_value),
                *holm,
            )
        )
    what = "primary measure" if found.primary else "described, not tested as a claim"
    smallest = (
        f"; the smallest difference that matters is {amount(measure, found.smallest_difference)} {measure.unit}"
        if found.smallest_difference is not None
        else ""
    )
    better = {True: ", lower is better", False: ", higher is better", None: ""}[measure.lower_is_better]
    header: tuple[str, ...] = ("arm", "seeds", "value", "difference", f"{level} alone")
    header += (f"{level} together", "p", "p (Holm)") if several else ("p",)
    corrected = (
        f"; together: all {len(found.arms)} intervals cover with {level} (Bonferroni), p corrected for the arms (Holm)"
        if several
        else ""
    )
    return TextTable(
        f"{item.evaluation.name}, {measure.title} ({measure.unit}{better}): {what}",
        header,
        tuple(rows),
        f"{counted(item.questions, 'question')}; difference: arm minus {found.baseline} over the seeds that both have{corrected}"
        f"{smallest}",
    )


def contrast_table(item: EvaluationComparison, found: MeasureComparison) -> TextTable:
    """Arms held against each other by the primary measure.

    Args:
        item: The evaluation; it has contrasts.
        found: Its comparison by that measure.
    """
    measure, level = found.measure, percent(found.confidence)
    rows = [
        (
            f"{contrast.result.name} against {contrast.against}",
            str(len(contrast.result.seeds)),
            amount(measure, contrast.result.difference, sign=True),
            interval_words(measure, contrast.result.interval),
            interval_words(measure, contrast.result.simultaneous),
            _p(contrast.result.p_value),
            _p(contrast.result.p_holm),
        )
        for contrast in item.contrasts
    ]
    return TextTable(
        f"{item.evaluation.name}, {measure.title}: arms against each other",
        ("contrast", "seeds", "difference", f"{level} alone", f"{level} together", "p", "p (Holm)"),
        tuple(rows),
        "corrected for the number of contrasts that the study names",
    )


def overview_table(item: EvaluationComparison) -> TextTable:
    """All measures of an evaluation: a row a measure, a column an arm, differences from the baseline.

    Args:
        item: The evaluation.
    """
    first = item.comparisons[0]
    rows = []
    for found in item.comparisons:
        base = sum(found.baseline_values.values()) / len(found.baseline_values)
        cells = [_cell(found, arm) for arm in found.arms]
        unit = "" if found.measure.unit == "points" else " (nats/token)"
        rows.append(
            (
                f"{found.measure.name}{unit}{' (primary)' * found.primary}",
                value_text(found.measure, base),
                *cells,
            )
        )
    level = percent(1 - first.confidence)
    return TextTable(
        f"{item.evaluation.name}: differences from {first.baseline}",
        ("measure", first.baseline, *(arm.name for arm in first.arms)),
        tuple(rows),
        f"↑ better, ↓ worse, ↕ other, at {level} after Holm's correction for the arms of that row, not for the number of rows; "
        "the primary measure decides",
    )


def _cell(found: MeasureComparison, arm: ArmMeasure) -> str:
    sign = {"better": " ↑", "worse": " ↓", "higher": " ↕", "lower": " ↕"}.get(arm.finding, "")
    return f"{amount(found.measure, arm.difference, sign=True)}{sign}"


def seeds_table(item: EvaluationComparison, found: MeasureComparison) -> TextTable:
    """One measure of every single run: a row an arm, a column a training seed.

    Args:
        item: The evaluation.
        found: One of its comparisons.
    """
    values = item.values[found.measure.name]
    seeds = list(dict.fromkeys(seed for of_arm in values.values() for seed in of_arm))
    rows = tuple(
        (arm, *(value_text(found.measure, of_arm[seed]) if seed in of_arm else "–" for seed in seeds))
        for arm, of_arm in values.items()
    )
    return TextTable(
        f"{item.evaluation.name}, {found.measure.title}: every run",
        ("arm", *(f"seed {seed}" for seed in seeds)),
        rows,
    )


def runs_table(study: Study, results: Mapping[tuple[str, int], RunResult]) -> TextTable:
    """What every arm is, and how long its runs took.

    Args:
        study: The study.
        results: What is in its file.
    """
    rows = []
    for arm in study.arms:
        lines = [
            results[arm.name, seed]
            for seed in study.seeds
            if (arm.name, seed) in results and seed in arm.seeds
        ]
        changed = ", ".join(f"{name} {value}" for name, value in arm.settings.items()) or arm.recipe.name
        training = [line.line["training"]["seconds"] for line in lines]
        evaluating = [sum(item["seconds"] for item in line.evaluations.values()) for line in lines]
        losses = [loss for line in lines if (loss := line.line["training"].get("train_loss")) is not None]
        rows.append(
            (
                f"{arm.name}{' (baseline)' * (arm is study.baseline)}",
                changed,
                f"{len(lines)} of {len(arm.seeds)}",
                duration_text(median(training)) if training else "–",
                duration_text(median(evaluating)) if evaluating else "–",
                f"{sum(losses) / len(losses):.4f}" if losses else "–",
            )
        )
    return TextTable(
        "arms",
        ("arm", "settings of its own", "runs", "training", "evaluations", "mean training loss"),
        tuple(rows),
        "training and evaluations: median seconds of a run, all its starts together; the loss is each arm's own objective",
    )


def study_tables(
    compared: StudyComparison, results: Mapping[tuple[str, int], RunResult], *, every: bool
) -> list[TextTable]:
    """All tables of a study, the primary measure first.

    Args:
        compared: The comparison.
        results: What is in the study's file.
        every: With a table for every measure, for the file.
    """
    tables = []
    for item in compared.evaluations:
        for number, found in enumerate(item.comparisons):
            if number == 0 or every:
                tables.append(measure_table(item, found))
            if number == 0:
                if item.contrasts:
                    tables.append(contrast_table(item, found))
                tables.append(seeds_table(item, found))
                if len(item.comparisons) > 1:
                    tables.append(overview_table(item))
    return [*tables, runs_table(compared.study, results)]


def markdown(compared: StudyComparison, tables: Sequence[TextTable]) -> str:
    """The tables with verdict and notes, as Markdown.

    Args:
        compared: The comparison.
        tables: Those of `study_tables`.
    """
    primary = compared.primary
    lines = [f"# {compared.study.name}", ""]
    lines += [f"{compared.extent}.", ""]
    if primary is None:
        lines += [f"**{compared.undecided}**", ""]
    else:
        lines += [f"**{primary.verdict}**", ""]
        lines += [f"- {arm.verdict}" for arm in primary.arms]
        lines += [f"- {contrast.result.verdict}" for contrast in compared.contrasts] + [""]
    for table in tables:
        lines += [
            f"## {table.title}",
            "",
            _row(table.header),
            _row(["---"] + ["---:"] * (len(table.header) - 1)),
        ]
        lines += [_row(row) for row in table.rows]
        lines += ["", table.caption, ""] if table.caption else [""]
    if compared.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in compared.notes), ""]
    return visible("\n".join(lines))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _p(value: float) -> str:
    return p_text(value).removeprefix("p ").removeprefix("= ")
