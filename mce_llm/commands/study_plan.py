"""`mce-llm study --plan`: the commands that a study would run, what of them is done, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from mce_llm.running.messages import counted
from mce_llm.running.visible_text import visible
from mce_llm.studies.checking import Checked, is_prepared
from mce_llm.studies.estimating import Durations, duration_text
from mce_llm.studies.planning import Run, shown_command
from mce_llm.studies.slots import Slot


def print_plan(found: Checked, runs: Sequence[Run], slots: Sequence[Slot], console: Console) -> None:
    """Print every command in its order.

    Args:
        found: The study.
        runs: Its runs.
        slots: The shares of the machine; commands are shown for the first.
        console: Where to.
    """
    study, slot = found.study, slots[0]

    def line(text: str, style: str = "") -> None:
        console.print(Text(visible(text), style=style), soft_wrap=True, highlight=False)

    durations = Durations(found.results.values())
    for step in study.prepare:
        line(f"== prepare {step.makes}{': done' * is_prepared(study, step)}", "bold")
        if not is_prepared(study, step):
            line(shown_command(list(step.command)))
    for run in runs:
        if run.finished:
            line(f"== {run.name}: finished, its results are kept", "dim")
            continue
        for stage in run.stages:
            if stage.done:
                line(f"== {run.name}: {stage.name}: done", "dim")
                continue
            takes = durations.expected(run.arm.name, stage.name)
            about = "" if takes is None else f" (about {duration_text(takes)})"
            line(f"== {run.name}: {stage.name}{about}", "bold")
            line(shown_command(stage.command(slot, study.launch), slot.environment))
    done = sum(run.finished for run in runs)
    left = durations.left(runs, len(slots))
    console.print()
    rest = (
        ""
        if done == len(runs)
        else f"; time left {duration_text(left)}{' (estimate, by the runs that are finished)' * (left is not None)}"
    )
    line(f"{study.name}: {done} of {counted(len(runs), 'run')} finished{rest}; output {study.output}")
