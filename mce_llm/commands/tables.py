"""Headings, tables and notes as the commands print them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mce_llm.eval.comparing.notes import Note
from mce_llm.running.visible_text import visible


def print_heading(console: Console, title: str) -> None:
    """Print an empty line and a title with a rule behind it."""
    console.print()
    console.rule(Text(title, style="bold"), align="left", characters="─")


def plain_table() -> Table:
    """Return a table of names and values without lines."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def print_warnings(notes: Iterable[Note], console: Console) -> None:
    """Print those notes of a comparison that are warnings; they stand above everything else."""
    for note in notes:
        if note.level == "warning":
            console.print(Text(f"WARNING: {visible(note.text, one_line=True)}", style="bold red"))


def print_notes(notes: Iterable[Note], console: Console) -> None:
    """Print those that are none, under a heading, where there are any."""
    told = [note for note in notes if note.level == "note"]
    if told:
        print_heading(console, "notes")
        for note in told:
            console.print(Text(f"- {visible(note.text, one_line=True)}"))
