"""Several arms against one baseline as people read them at a terminal: each comparison, then all of them corrected."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mce_llm.commands.compare_report import interval_text, print_comparison
from mce_llm.commands.tables import print_heading
from mce_llm.eval.comparing.several_arms import ArmsComparison
from mce_llm.eval.comparing.verdicts import p_text, percent, points
from mce_llm.running.visible_text import visible


def print_arms(comparison: ArmsComparison, console: Console, *, listed: int = 5) -> None:
    """Print the comparisons of several arms with one baseline.

    Args:
        comparison: The outcome of `compare_arms`.
        console: Where to.
        listed: Questions won and lost to show for each arm, of each so many.
    """
    baseline = visible(comparison.baseline, one_line=True)
    for arm in comparison.arms:
        letter = arm.comparison.sides[1]
        console.rule(
            Text(f"{letter}: {visible(arm.name, one_line=True)} against A: {baseline}", style="bold"),
            characters="═",
        )
        print_comparison(arm.comparison, console, listed=listed)
        console.print()
    console.rule(Text(f"all {len(comparison.arms)} arms against A: {baseline}", style="bold"), characters="═")
    console.print(_table(comparison))
    print_heading(console, "what may be concluded")
    console.print(Text(visible(comparison.verdict, one_line=True), style="bold"))


def _table(comparison: ArmsComparison) -> Table:
    level = percent(comparison.confidence)
    table = Table()
    table.add_column("")
    table.add_column("arm", overflow="fold")
    for name in ("points", f"{level} alone", f"{level} together", "p alone", "p (Holm)"):
        table.add_column(name, justify="right")
    for arm in comparison.arms:
        table.add_row(
            arm.comparison.sides[1],
            Text(visible(arm.name, one_line=True)),
            points(arm.comparison.difference, sign=True),
            interval_text(arm.comparison.interval),
            interval_text(arm.simultaneous),
            _p(arm.p_value),
            _p(arm.p_holm),
        )
    count = len(comparison.arms)
    table.caption = (
        f"alone: for that arm only; together: all {count} intervals cover with {level} (Bonferroni); Holm's p is corrected "
        f"for {count} arms"
    )
    table.caption_justify = "left"
    return table


def _p(value: float) -> str:
    return p_text(value).removeprefix("p ").removeprefix("= ")
