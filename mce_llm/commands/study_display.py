"""How far a study is, while it runs: a live table at a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mce_llm.running.visible_text import visible
from mce_llm.studies.checking import Checked
from mce_llm.studies.child import Child
from mce_llm.studies.collecting import launches_of, log_of, signs_of
from mce_llm.studies.estimating import Durations, Pace, duration_text, progress_of
from mce_llm.studies.planning import Run
from mce_llm.studies.running import Active

_SECONDS_BETWEEN = 0.5  # of two pictures at a terminal
_PACE_EVERY = 5.0  # seconds between looks at the logs for the pace
_PLAIN_EVERY = 60.0  # seconds between lines without a terminal


class StudyDisplay:
    """Tells on a console how far a study is; to be used as a context.

    Args:
        console: Where to.
        found: The study.
        runs: Its runs.
        jobs: How many run at once.
    """

    def __init__(self, console: Console, found: Checked, runs: Sequence[Run], jobs: int) -> None:
        self._console, self._study, self._runs, self._jobs = console, found.study, runs, jobs
        self._durations = Durations(found.results.values())
        self._finished = sum(run.finished for run in runs)
        self._spent: dict[tuple[str, int, str], float] = {}
        self._paces: dict[Child, Pace] = {}
        self._next = self._next_pace = 0.0
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> StudyDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, active: Active) -> None:
        """Say which stage begins."""
        log = log_of(self._study, active.run, active.stage.name)
        self.said(f"{active.run.name}: {active.stage.name} begins ({log})")

    def ended(self, active: Active, seconds: float, code: int) -> None:
        """Say how long a stage took, or with which exit code it ended."""
        run, stage = active.run, active.stage.name
        if code == 0:
            self._durations.add(run.arm.name, run.seed, stage, seconds)
            self._spent[run.arm.name, run.seed, stage] = float("inf")
            self.said(f"{run.name}: {stage} took {duration_text(seconds)}")
        else:
            self.said(f"{run.name}: {stage} ended with exit code {code} after {duration_text(seconds)}")

    def finished(self, run: Run) -> None:
        """Say how many runs are finished, and how long the others may take."""
        self._finished += 1
        for name in [stage.name for stage in run.stages]:
            if self._durations.expected(run.arm.name, name) is None:  # it ended in an earlier start
                spent = launches_of(self._study, run).seconds(name, signs_of(self._study, run, name))
                self._durations.add_before(run.arm.name, name, spent)
        self.said(f"{run.name}: results kept; {self._where()}")

    def said(self, text: str) -> None:
        """Print a line."""
        self._console.print(Text(visible(text)), highlight=False, soft_wrap=True)

    def look(self, active: Sequence[Active]) -> None:
        """Show the steps that the runs are at."""
        now = time.monotonic()
        if now >= self._next_pace:
            self._next_pace = now + _PACE_EVERY
            for item in active:
                self._note_pace(item)
        if now < self._next:
            return
        if self._live is not None:
            self._next = now + _SECONDS_BETWEEN
            self._live.update(self._table(active), refresh=True)
        elif self._next == 0.0:
            self._next = now + _PLAIN_EVERY
        else:
            self._next = now + _PLAIN_EVERY
            steps = "; ".join(f"{item.run.name}: {self._step(item)}" for item in active)
            self.said(f"{self._where()}; {steps}")

    def _note_pace(self, active: Active) -> None:
        if active.child is None:
            return
        key = (active.run.arm.name, active.run.seed, active.stage.name)
        self._spent[key] = active.child.seconds
        if (found := self._progress(active)) is not None:
            pace = self._paces.setdefault(active.child, Pace())
            if (projection := pace.seen(*found, self._spent[key])) is not None:
                self._durations.project(*key, projection)

    def _table(self, active: Sequence[Active]) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for item in active:
            table.add_row(
                Text(visible(item.run.name, one_line=True)), Text(visible(self._step(item), one_line=True))
            )
        table.add_row(Text(self._study.name, style="bold"), Text(self._where(), style="bold"))
        return table

    def _step(self, active: Active) -> str:
        if not active.left or active.child is None:
            return "waits"
        found = self._progress(active)
        where = "starts" if found is None else f"{found[0]:,} of {found[1]:,}"
        return f"{active.stage.name}, {where}, {duration_text(active.child.seconds)}"

    def _progress(self, active: Active) -> tuple[int, int] | None:
        name, child = active.stage.name, active.child
        return progress_of(log_of(self._study, active.run, name), name, 0 if child is None else child.begins)

    def _where(self) -> str:
        left = self._durations.left(self._runs, self._jobs, self._spent)
        told = (
            ""
            if self._finished == len(self._runs)
            else f", time left {duration_text(left)}{' (estimate)' * (left is not None)}"
        )
        return f"{self._finished} of {len(self._runs)} runs finished{told}"
