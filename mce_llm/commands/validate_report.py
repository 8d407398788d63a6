"""The outcome of `mce-llm validate` as people read it: samples, data, memory, and at the end all findings."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mce_llm.commands.data_examination import DataExamination
from mce_llm.commands.findings import Level
from mce_llm.commands.plan_report import engines_table, print_subject
from mce_llm.commands.sample_view import CLOSING, OPENING
from mce_llm.commands.tables import plain_table, print_heading
from mce_llm.commands.validation import Validation

_MARKS: dict[Level, Text] = {
    "ok": Text("ok", style="green"),
    "warning": Text("warning", style="yellow"),
    "problem": Text("problem", style="bold red"),
}


def print_validation(outcome: Validation, console: Console) -> None:
    """Print the outcome.

    Args:
        outcome: What was found.
        console: Where to.
    """
    if outcome.fetches:
        print_heading(console, "what is read")
        table = plain_table()
        for fetch in outcome.fetches:
            style = {"missing": "red", "no weights": "red", "download": "yellow"}.get(fetch.state, "green")
            table.add_row(fetch.role, Text(fetch.name), Text(fetch.state, style=style), Text(fetch.detail))
        console.print(table)
    if outcome.samples:
        print_heading(console, f"what the model sees ({OPENING}trained{CLOSING}, the rest is not)")
        for number, sample in enumerate(outcome.samples):
            console.print(Padding(sample, (1 if number else 0, 0, 0, 2)))
    for role, data in outcome.data.items():
        print_heading(console, f"{role} data: {data.source}")
        console.print(data_table(data))
    if outcome.plan is not None:
        print_heading(console, "memory")
        print_subject(outcome.plan, console)
        console.print(engines_table(outcome.plan, console.width))
    print_heading(console, "findings")
    table = plain_table()
    for level in ("ok", "warning", "problem"):
        for finding in outcome.findings.items:
            if finding.level == level:
                table.add_row(_MARKS[finding.level], Text(finding.subject), Text(finding.text))
    console.print(table)
    console.print()
    console.print(_summary(outcome))


def data_table(data: DataExamination) -> Table:
    """The counts of one data set."""
    table = plain_table()
    first = "the first " if data.limited else ""
    made = f", one for each trained turn of {data.records:,} records" if data.records != data.examples else ""
    table.add_row("examples", f"{first}{data.examples:,}{made}; kept {data.kept:,}, cut {data.truncated:,}")
    table.add_row(
        "left out", f"too long {data.dropped_overlong:,}, nothing to train {data.dropped_untrained:,}"
    )
    table.add_row("twice there", f"{data.duplicates:,}")
    table.add_row(
        "tokens", f"{data.tokens:,}, of them trained {data.trained_tokens:,} ({data.label_share:.1%})"
    )
    percentiles = ", ".join(
        f"{'longest' if q == 100 else f'{q} %'} {length:,}" for q, length in data.lengths.items()
    )
    table.add_row("lengths", f"{percentiles} (before truncation)")
    for text in data.lost:
        table.add_row("not in the text", Text(str(text)))
    if data.packing is not None:
        table.add_row("packed", f"{data.packing.rows:,} rows, {data.packing.efficiency:.1%} full")
    return table


def _summary(outcome: Validation) -> Text:
    counts = {level: outcome.findings.count(level) for level in _MARKS}
    problems, warnings = counts["problem"], counts["warning"]
    told = f"{counts['ok']} in order, {warnings} warning{'s' * (warnings != 1)}, {problems} problem{'s' * (problems != 1)}"
    if problems:
        return Text(f"not ready: {told}", style="bold red")
    return Text(f"ready: {told}", style="bold yellow" if warnings else "bold green")
