"""Nothing that a console prints steers the terminal, and nothing of others is markup."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from helpers.terminals import acts
from mce_llm.running.terminal import DataConsole


@given(st.text(st.characters(codec=None), max_size=30))
def test_a_console_prints_nothing_that_acts_by_any_way(text):
    out = io.StringIO()
    console = DataConsole(file=out, width=200, force_terminal=False)
    table = Table(title=Text(text))
    table.add_column(text)
    table.add_row(text)
    for renderable in (text, Text(text), table):
        console.print(renderable)
    console.rule(Text(text))
    assert not any(map(acts, out.getvalue()))


def test_markup_of_others_is_text():
    out = io.StringIO()
    table = Table("[red]column[/]")
    table.add_row("[bold]cell[/]")
    DataConsole(file=out, width=80).print("[red]line[/]", table)
    for part in ("[red]line[/]", "[red]column[/]", "[bold]cell[/]"):
        assert part in out.getvalue()
