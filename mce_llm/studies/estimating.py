"""How far the runs of a study are, by their logs, and how long the rest may take, by those that are finished and by their pace."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
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


@dataclass(frozen=True)
class Projection:
    """What to expect of a stage that is under way, by its own pace.

    Attributes:
        whole: Seconds that all its steps take at this pace.
        left: Seconds until the last of them.
    """

    whole: float
    left: float


class Pace:
    """How fast a stage that is under way goes, by the times at which its progress was seen to change.

    A resumed training begins in the middle, what a program does before its first step is not repeated for each, and a log
    may name every fifth step only: so the time of a step is that between two changes, and not what has passed over what
    is done.
    """

    def __init__(self) -> None:
        self._looked: int | None = None
        self._first: tuple[int, float] | None = None
        self._last = (0, 0.0)

    def seen(self, done: int, of: int, seconds: float) -> Projection | None:
        """Take note of a look.

        Args:
            done: Steps or questions done.
            of: Of how many.
            seconds: How long the program has been running.

        Returns:
            What to expect of it; None until a fiftieth of it has been seen to happen, from one change to another.
        """
        if self._looked is not None and done < self._looked:
            self._looked = self._first = None
        if self._looked is not None and done > self._looked:
            self._last = (done, seconds)
            self._first = self._first or self._last
        self._looked = done
        if self._first is None:
            return None
        steps, passed = self._last[0] - self._first[0], self._last[1] - self._first[1]
        if steps <= 0 or steps < of / 50 or passed <= 0:
            return None
        step = passed / steps
        return Projection(whole=step * of, left=max(0.0, step * (of - done) - (seconds - self._last[1])))


class Durations:
    """How long trainings and evaluations take: by the results of a study, and by what goes on here and now.

    Results may be those of another machine, or of a busier hour. So what has ended in this start, and the projections of
    what is under way, come first; and by how much these differ from the results tells what to make of the others.

    Args:
        results: What is finished.
    """

    def __init__(self, results: Iterable[RunResult]) -> None:
        self._before: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._here: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._under_way: dict[tuple[str, int, str], Projection] = {}
        for result in results:
            arm = result.line["arm"]
            self.add_before(arm, TRAINING, result.line["training"].get("seconds", 0.0))
            for name, evaluation in result.evaluations.items():
                self.add_before(arm, name, evaluation["seconds"])

    def add_before(self, arm: str, stage: str, seconds: float) -> None:
        """Take note of a stage that had ended before this start.

        Args:
            arm: Of which arm.
            stage: `training`, or an evaluation.
            seconds: How long it took; 0 where that is not known.
        """
        if seconds > 0:
            self._before[arm, stage].append(seconds)

    def add(self, arm: str, seed: int, stage: str, seconds: float) -> None:
        """Take note of a stage that has ended in this start, which began it.

        Args:
            arm: Of which arm.
            seed: Of which seed.
            stage: `training`, or an evaluation.
            seconds: How long it took.
        """
        known = self._under_way.pop((arm, seed, stage), None)
        # A resumed stage took less than a whole one does.
        self._here[arm, stage].append(seconds if known is None else max(seconds, known.whole))

    def project(self, arm: str, seed: int, stage: str, projection: Projection) -> None:
        """Take note of the pace of a stage that is under way.

        Args:
            arm: Of which arm.
            seed: Of which seed.
            stage: `training`, or an evaluation.
            projection: What its pace tells.
        """
        self._under_way[arm, seed, stage] = projection

    def expected(self, arm: str, stage: str) -> float | None:
        """Seconds that a stage may take; None where nothing like it is known.

        By the median of those of the same arm that were seen in this start, or else of the results, times the ratio of what
        was seen to what the results had said of it; of any arm where there is none of the same.
        """
        here = self._seen_here()
        if found := here.get((arm, stage)):
            return median(found)
        before = _median_of(self._before, arm, stage)
        if before is not None:
            return before * self._ratio(here)
        return _median_of(here, arm, stage)

    def left(
        self, runs: Sequence[Run], jobs: int, spent: Mapping[tuple[str, int, str], float] | None = None
    ) -> float | None:
        """Seconds until all runs are finished, so many at a time; None where nothing is known of a stage.

        Args:
            runs: All runs, in the order in which they are begun.
            jobs: How many run at once.
            spent: (arm, seed, stage) → seconds that one has been running; stages that have ended since are there with
                infinity.
        """
        begun = {(arm, seed) for arm, seed, _ in spent or {}}
        free = [0.0] * jobs
        for run in sorted(runs, key=lambda run: (run.arm.name, run.seed) not in begun):  # stable
            total = 0.0
            for stage in run.stages:
                if stage.done:
                    continue
                key = (run.arm.name, run.seed, stage.name)
                gone = (spent or {}).get(key, 0.0)
                if key in self._under_way:
                    total += self._under_way[key].left
                elif gone != inf:
                    expected = self.expected(run.arm.name, stage.name)
                    if expected is None:
                        return None
                    total += max(0.0, expected - gone)
            free.sort()
            free[0] += total
        return max(free)

    def _seen_here(self) -> dict[tuple[str, str], list[float]]:
        found = {key: list(seconds) for key, seconds in self._here.items()}
        for (arm, _, stage), projection in self._under_way.items():
            found.setdefault((arm, stage), []).append(projection.whole)
        return found

    def _ratio(self, here: Mapping[tuple[str, str], Sequence[float]]) -> float:
        ratios = [
            median(seconds) / before
            for (arm, stage), seconds in here.items()
            if (before := _median_of(self._before, arm, stage)) is not None
        ]
        return median(ratios) if ratios else 1.0


def _median_of(known: Mapping[tuple[str, str], Sequence[float]], arm: str, stage: str) -> float | None:
    found = known.get((arm, stage)) or [
        value for (_, name), values in known.items() if name == stage for value in values
    ]
    return median(found) if found else None


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
