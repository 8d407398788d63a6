"""What a study has found, printed and written: tables, study.json, a picture, and the page of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mce_llm.eval.comparing.measures import ACCURACY
from mce_llm.eval.reporting import write_report
from mce_llm.running.files import whole_file, write_json, write_text
from mce_llm.running.visible_text import visible
from mce_llm.studies.checking import DEFINITION
from mce_llm.studies.comparing import EvaluationComparison, StudyComparison, compare_study
from mce_llm.studies.definition import Study
from mce_llm.studies.notes import notes_of
from mce_llm.studies.page import study_page
from mce_llm.studies.pictures import study_charts
from mce_llm.studies.results import RunResult
from mce_llm.studies.tables import TextTable, markdown, study_tables

JSON, TABLES, PAGE = "study.json", "tables.md", "index.html"


def report_study(
    study: Study, results: Mapping[tuple[str, int], RunResult], console: Console, *, tables_too: bool = True
) -> StudyComparison:
    """Compare what is finished, print it, and leave it in the study's folder.

    Args:
        study: The study.
        results: What is in its file.
        console: Where to print.
        tables_too: Print the tables, and not only where they are.

    Returns:
        The comparison.
    """
    compared = compare_study(study, results, notes_of(study, results, _changes(study)))
    write_json(study.output / JSON, compared.to_dict())
    tables = study_tables(compared, results, every=True)
    write_text(study.output / TABLES, markdown(compared, tables))
    charts = study_charts(compared)
    for chart in charts:
        with whole_file(study.output / f"{chart.name}.png") as beside:
            beside.write_bytes(chart.png)
    report = _report(study, compared)
    write_text(study.output / PAGE, study_page(compared, tables, charts, report=report))
    if tables_too:
        print_study(compared, study_tables(compared, results, every=False), console)
    console.print(
        f"written to {study.output}: {PAGE}, {TABLES}, {JSON}{', report/' * (report is not None)}"
        f" ({compared.extent})",
        soft_wrap=True,
        highlight=False,
    )
    return compared


def _report(study: Study, compared: StudyComparison) -> str | None:
    """Write the report of the runs whose folders are there: its page, or None where not all of them are.

    It is over the seeds that all arms have, as each arm of a report has as many runs as the baseline.
    """
    arms = [
        arm
        for arm in study.arms
        if all(arm.name in item.values[ACCURACY.name] for item in _answered(compared))
    ]
    if not _answered(compared) or len(arms) < 2:
        return None
    names = [item.evaluation.name for item in _answered(compared)]
    seeds = [
        seed
        for seed in study.seeds
        if all(
            (study.folder(arm.name, seed) / name / "summary.json").is_file() for arm in arms for name in names
        )
    ]
    if not seeds:
        return None

    def folders(arm: str) -> list[Path]:
        return [study.folder(arm, seed) / name for name in names for seed in seeds]

    baseline, *others = [arm.name for arm in arms]
    write_report(
        folders(baseline),
        study.output / "report",
        arms=[(name, folders(name)) for name in others],
        command=f"mce-llm study {study.file}",
    )
    return "report/index.html"


def _answered(compared: StudyComparison) -> list[EvaluationComparison]:
    return [item for item in compared.evaluations if ACCURACY.name in item.values]


def _changes(study: Study) -> list[Mapping[str, object]]:
    """What was changed on the way, as definition.json says; nothing where a study was moved without it."""
    try:
        content = json.loads((study.output / DEFINITION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return list(content.get("changes", []))


def print_study(compared: StudyComparison, tables: list[TextTable], console: Console) -> None:
    """Print tables, notes, and at the end what may be concluded.

    Args:
        compared: The comparison.
        tables: What to print of it.
        console: Where to.
    """
    for table in tables:
        console.print()
        console.print(_rich(table))
    if compared.notes:
        console.print()
        for note in compared.notes:
            console.print(Text(f"- {visible(note, one_line=True)}"))
    console.print()
    primary = compared.primary
    if primary is None:
        console.print(Text(compared.undecided or "", style="bold"))
        return
    for arm in primary.arms:
        console.print(Text(visible(arm.verdict, one_line=True)))
    for contrast in compared.contrasts:
        console.print(Text(visible(contrast.result.verdict, one_line=True)))
    console.print(Text(visible(primary.verdict, one_line=True), style="bold"))


def _rich(table: TextTable) -> Table:
    shown = Table(
        title=Text(visible(table.title, one_line=True), style="bold"),
        title_justify="left",
        caption=Text(visible(table.caption, one_line=True)) if table.caption else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for number, name in enumerate(table.header):
        shown.add_column(
            Text(visible(name, one_line=True)),
            justify="left" if number == 0 else "right",
            no_wrap=number == 0,
            overflow="fold",
        )
    for row in table.rows:
        shown.add_row(*(Text(visible(cell, one_line=True)) for cell in row))
    return shown
