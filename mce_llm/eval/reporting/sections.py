"""What stands in a report: a section for each task, which run is A and which is B there, and what cannot be compared.

The statistics are those of `mce_llm.eval.comparing.comparison`; only their place is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mce_llm.eval.comparing.comparability import run_labels
from mce_llm.eval.comparing.comparison import Comparison, compare_runs
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import IntervalError
from mce_llm.eval.items import TASK_TITLES
from mce_llm.eval.reporting.collect import Source, Training
from mce_llm.eval.reporting.drawing import COLOURS, LINES
from mce_llm.eval.saved_runs import SavedRun

_UNPAIRED = [name for name in COLOURS if name.startswith("run-")]


@dataclass(frozen=True)
class Look:
    """How one run is named and drawn, the same everywhere in a report.

    Attributes:
        tag: `A`, `B`, `A2`, … in a comparison, else `run 1`, …
        name: The run's own name.
        arm: Which side of the comparison it is on, or None.
        colour: A name out of `COLOURS`.
        line: A line style of matplotlib; runs of one colour have different ones.
    """

    tag: str
    name: str
    arm: Literal["A", "B"] | None
    colour: str
    line: Any

    @property
    def label(self) -> str:
        """Tag and name."""
        return f"{self.tag} · {self.name}"


@dataclass(frozen=True)
class Member:
    """One evaluation in a section.

    Attributes:
        look: How it is drawn.
        run: Its files.
        interval: Of its accuracy: the comparison's, else that of its summary.
    """

    look: Look
    run: SavedRun
    interval: tuple[float, float]


@dataclass(frozen=True)
class Section:
    """The evaluations on one task.

    Attributes:
        task: `gsm8k` or `math`.
        members: In the order in which they were given: A, B, A2, B2, … where they are compared.
        comparison: Its outcome, or None.
        not_compared: Why there is none, in words; None where there is one.
    """

    task: str
    members: tuple[Member, ...]
    comparison: Comparison | None
    not_compared: str | None

    @property
    def title(self) -> str:
        """The task as people write it."""
        return TASK_TITLES.get(self.task, self.task)

    @property
    def pairs(self) -> list[tuple[Member, Member]]:
        """A and B of each pair; empty where nothing is compared."""
        return (
            [] if self.comparison is None else list(zip(self.members[::2], self.members[1::2], strict=True))
        )


def arrange(
    sources: Sequence[Source], *, pair: bool | None = None, allow_differences: bool = False
) -> list[Section]:
    """Put evaluations into sections and compare what can be compared.

    The runs of a task, in the order in which they were given, are A, B, A2, B2, …

    Args:
        sources: What `read_sources` found.
        pair: Compare (True: or fail), never compare (False), or compare where it is possible (None).
        allow_differences: Compare runs that differ in more than the model, too; the comparison says in what.

    Returns:
        One section a task, in the order of their first runs; none where there are trainings alone.

    Raises:
        EvaluationError: `pair` is True and the runs of a task cannot be compared.
    """
    tasks = list(dict.fromkeys(task for source in sources for task in source.evaluations))
    if pair and not tasks:
        raise EvaluationError("--pair compares evaluations, and none of these folders holds one")
    return [_section(task, sources, pair, allow_differences) for task in tasks]


def trainings(sources: Sequence[Source], sections: Sequence[Section]) -> list[tuple[Look, Training | None]]:
    """The trainings behind the runs, each once, drawn as the evaluation of its model is."""
    found: list[tuple[Look, Training | None]] = []
    seen = set()
    for place, source in enumerate(sources):
        runs = [id(run) for run in source.evaluations.values()]
        looks = [member.look for section in sections for member in section.members if id(member.run) in runs]
        looks.sort(key=lambda look: look.arm is None)  # as a side of a comparison, where it is one anywhere
        if source.training is not None:
            if (folder := source.training.folder.resolve()) in seen:
                continue
            seen.add(folder)
        found.append(
            (
                looks[0] if looks else _unpaired(place, _printable(source.path.absolute().name)),
                source.training,
            )
        )
    return found


def _section(task: str, sources: Sequence[Source], pair: bool | None, allow_differences: bool) -> Section:
    places = [place for place, source in enumerate(sources) if task in source.evaluations]
    runs = [sources[place].evaluations[task] for place in places]
    problem, comparison = _why_not(sources, task, pair), None
    if problem is None:
        try:
            pairs = list(zip(runs[::2], runs[1::2], strict=True))
            comparison = compare_runs(pairs, allow_differences=allow_differences)
        except (EvaluationError, IntervalError) as error:
            problem = _printable(str(error))
    if pair and problem is not None:
        raise EvaluationError(problem)
    names = [_printable(name) for name in run_labels(runs)]
    if comparison is None:
        intervals = [run.summary["interval"] for run in runs]
        looks = [_unpaired(place, name) for place, name in zip(places, names, strict=True)]
    else:
        intervals = [side.interval for pair in comparison.pairs for side in (pair.a, pair.b)]
        looks = [_paired(place, len(runs), name) for place, name in enumerate(names)]
    members = tuple(
        Member(look, run, (interval[0], interval[1]))
        for look, run, interval in zip(looks, runs, intervals, strict=True)
    )
    return Section(task, members, comparison, problem)


def _why_not(sources: Sequence[Source], task: str, pair: bool | None) -> str | None:
    """The reason for which the runs of a task are not compared, as far as it can be told without their answers."""
    count = sum(task in source.evaluations for source in sources)
    title = TASK_TITLES.get(task, task)
    if pair is False:
        return "a comparison was not wanted (--no-pair)"
    if count == 1:
        return f"there is one run on {title} only; a comparison takes two, A and B"
    for source in sources:
        if task not in source.evaluations and not source.is_evaluation:
            return f"{source.path} has no evaluation on {title}, so it is not clear which of the others is A and which B"
    if count % 2:
        return (
            f"there are {count} runs on {title}, an odd number; a comparison takes pairs: A B, or A B A2 B2 …"
        )
    return None


def _printable(text: str) -> str:
    """Names of folders may hold bytes that are no UTF-8; pictures and pages cannot."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _paired(place: int, count: int, name: str) -> Look:
    number, is_b = divmod(place, 2)
    arm: Literal["A", "B"] = "B" if is_b else "A"
    tag = arm if count == 2 else f"{arm}{number + 1}"
    return Look(tag, name, arm, f"arm-{arm.lower()}", LINES[number % len(LINES)])


def _unpaired(place: int, name: str) -> Look:
    line = LINES[place // len(_UNPAIRED) % len(LINES)]
    return Look(f"run {place + 1}", name, None, _UNPAIRED[place % len(_UNPAIRED)], line)
