"""Headings and tables as the commands print them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text


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
