"""How far the runs of a study are, by their logs, and how long the rest may take, by the runs that are finished."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from mce_llm.studies.child import last_lines
from mce_llm.studies.planning import TRAINING, Run
from mce_llm.studies.results import RunResult

_LOOKED_AT = 40  # lines of a log
_STEP = re.compile(r"^step (\d+)/(\d+) ")
_BAR = re.compile(r"\|\s*(\d+)/(\d+) \[")


def progress_of(log: Path, stage: str, begins: int = 0) -> tuple[int, int] | None:
    """How far a program is, by the last line of its log that says so.

    Args:
        log: Its log.
        stage: `training`, or an evaluation.
        begins: Where the output of this start begins.

    Returns:
        (done, of): steps or questions; None where nothing is said yet.
    """
    pattern = _STEP if stage == TRAINING else _BAR
    for line in reversed(last_lines(log, _LOOKED_AT, begins)):
        if found := pattern.search(line):
            return int(found[1]), int(found[2])
    return None


class Durations:
    """How long trainings and evaluations took, by the results of a study.

    Args:
        results: What is finished.
    """

    def __init__(self, results: Iterable[RunResult]) -> None:
        self._of_arm: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._of_any: dict[str, list[float]] = defaultdict(list)
        for result in results:
            arm = result.line["arm"]
            self.add(arm, TRAINING, result.line["training"].get("seconds", 0.0))
            for name, evaluation in result.evaluations.items():
                self.add(arm, name, evaluation["seconds"])

    def add(self, arm: str, stage: str, seconds: float) -> None:
        """Take note of a stage that has ended.

        Args:
            arm: Of which arm.
            stage: `training`, or an evaluation.
            seconds: How long it took; 0 where that is not known.
        """
        if seconds > 0:
            self._of_arm[arm, stage].append(seconds)
            self._of_any[stage].append(seconds)

    def expected(self, arm: str, stage: str) -> float | None:
        """Seconds that a stage may take: the median of those of the same arm, or else of any; None without one."""
        found = self._of_arm.get((arm, stage)) or self._of_any.get(stage)
        return median(found) if found else None

    def left(
        self, runs: Sequence[Run], jobs: int, spent: Mapping[tuple[str, int, str], float] | None = None
    ) -> float | None:
        """Seconds until all runs are finished, so many at a time; None where a stage has never been finished.

        Args:
            runs: All runs.
            jobs: How many run at once.
            spent: (arm, seed, stage) → seconds that one has been running; stages that have ended since are there with
                infinity.
        """
        total = 0.0
        for run in runs:
            for stage in run.stages:
                if stage.done:
                    continue
                expected = self.expected(run.arm.name, stage.name)
                if expected is None:
                    return None
                total += max(0.0, expected - (spent or {}).get((run.arm.name, run.seed, stage.name), 0.0))
        return total / jobs


def duration_text(seconds: float | None) -> str:
    """A duration as people say it: `2 h 5 min`, `40 s`; `unknown yet` for None."""
    if seconds is None:
        return "unknown yet"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
