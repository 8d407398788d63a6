"""What stands in a report: a section for each data set (and arm), which run is A and which B, and what is not compared.

The statistics are those of `mce_llm.eval.comparing`; only their place is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mce_llm.eval.comparing.comparison import Comparison, compare_runs
from mce_llm.eval.comparing.comparison_outcome import RunAccuracy
from mce_llm.eval.comparing.distinct_questions import DistinctQuestions
from mce_llm.eval.comparing.evaluations import SavedEvaluation
from mce_llm.eval.comparing.labels import run_labels
from mce_llm.eval.comparing.notes import Note
from mce_llm.eval.comparing.pairing import Arm, Arrangement, Run, arrange_groups, arrange_runs
from mce_llm.eval.comparing.run_accuracy import run_accuracy
from mce_llm.eval.comparing.several_arms import ArmResult, ArmsComparison, compare_arms
from mce_llm.eval.comparing.training_differences import TrainingOverview, training_overview
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import IntervalError
from mce_llm.eval.reporting.collect import Source, Training
from mce_llm.eval.reporting.data_sets import DataSet, data_sets
from mce_llm.eval.reporting.looks import Look, paired, printable, unpaired
from mce_llm.eval.saved_runs import SavedRun
from mce_llm.running.messages import counted

Groups = tuple[Sequence[int], Sequence[tuple[str | None, Sequence[int]]]]
"""Places of the baseline's sources, and (name, places) of each arm."""


@dataclass(frozen=True)
class Member:
    """One evaluation in a section.

    Attributes:
        look: How it is drawn.
        run: Its files.
        accuracy: Over different questions, with its interval.
    """

    look: Look
    run: SavedRun
    accuracy: RunAccuracy


class AnyMember(Protocol):
    """An evaluation in a section of any kind."""

    @property
    def look(self) -> Look:
        """How it is drawn."""

    @property
    def run(self) -> SavedEvaluation:
        """Its files."""


class AnySection(Protocol):
    """A section about evaluations of any kind."""

    @property
    def title(self) -> str:
        """Its heading."""

    @property
    def members(self) -> Sequence[AnyMember]:
        """Its evaluations."""


@dataclass(frozen=True)
class Section:
    """The evaluations on one data set; where several arms are held against one baseline, those of one arm.

    Attributes:
        key: Its name in links and files.
        data: The data set, as people call it.
        task: How answers are judged, `gsm8k` or `math`.
        members: In the order in which they were given: A, B, A2, B2, … where they are compared.
        comparison: Its outcome, or None.
        not_compared: Why there is none, in words; None where there is one.
        trainings: In what the trainings of its runs differ.
        notes: What a reader must know.
        arm: The arm among several, with what the correction for their number gives; else None.
        conclusion: What may be concluded of all arms, at the last of them; else None.
    """

    key: str
    data: str
    task: str
    members: tuple[Member, ...]
    comparison: Comparison | None
    not_compared: str | None
    trainings: TrainingOverview
    notes: tuple[Note, ...]
    arm: ArmResult | None = None
    conclusion: str | None = None

    @property
    def title(self) -> str:
        """The data set, and the arm where there are several."""
        return self.data if self.arm is None else f"{self.data}: {self.sides[1]}, {printable(self.arm.name)}"

    @property
    def sides(self) -> tuple[str, str]:
        """What A and B are called."""
        return ("A", "B") if self.comparison is None else self.comparison.sides

    @property
    def colours(self) -> tuple[str, str]:
        """Those of A and B."""
        a, b, *_ = self.members
        return a.look.colour, b.look.colour

    @property
    def pairs(self) -> list[tuple[Member, Member]]:
        """A and B of each pair; empty where nothing is compared."""
        return (
            [] if self.comparison is None else list(zip(self.members[::2], self.members[1::2], strict=True))
        )


def arrange(
    sources: Sequence[Source],
    *,
    groups: Groups | None = None,
    pair: bool | None = None,
    allow_differences: bool = False,
) -> list[Section]:
    """Put evaluations into sections and compare what can be compared.

    Args:
        sources: What `read_sources` found.
        groups: Which of them belong to which arm; None: two are A and B, more are arranged by their records.
        pair: Compare (True: or fail), never compare (False), or compare where it is possible (None).
        allow_differences: Compare runs that differ in more than the model, too; the comparison says in what.

    Returns:
        One section a data set, and arm where there are several, in the order of their first runs; none where there are
        trainings alone.

    Raises:
        EvaluationError: `pair` is True, or groups are given, and the runs on a data set cannot be compared.
    """
    found = data_sets(sources, lambda source: source.evaluations)
    if (pair or groups is not None) and not any(
        source.evaluations or source.likelihoods for source in sources
    ):
        what = "--pair" if groups is None else "--baseline"
        raise EvaluationError(f"{what} compares evaluations, and none of these folders holds one")
    if groups is not None and pair is False:
        raise EvaluationError(
            "--baseline and --arm say what is compared, --no-pair that nothing is; leave one out"
        )
    return [
        section for data in found for section in _sections(data, sources, groups, pair, allow_differences)
    ]


def trainings(
    sources: Sequence[Source], sections: Sequence[AnySection]
) -> list[tuple[Look, Training | None]]:
    """The trainings behind the runs, each once, drawn as the evaluation of its model is."""
    found: list[tuple[Look, Training | None]] = []
    seen = set()
    for place, source in enumerate(sources):
        runs = [id(run) for run in (*source.evaluations, *source.likelihoods)]
        looks = [member.look for section in sections for member in section.members if id(member.run) in runs]
        looks.sort(key=lambda look: look.arm is None)  # as a side of a comparison, where it is one anywhere
        if source.training is not None:
            if (folder := source.training.folder.resolve()) in seen:
                continue
            seen.add(folder)
        look = looks[0] if looks else unpaired(place, printable(source.path.absolute().name))
        found.append((look, source.training))
    return found


def _sections(
    data: DataSet[SavedRun],
    sources: Sequence[Source],
    groups: Groups | None,
    pair: bool | None,
    allow_differences: bool,
) -> list[Section]:
    problem = why_not_compared(sources, data, groups, pair)
    if problem is None:
        try:
            arrangement = arranged(data, groups, allow_differences)
            return _compared(data, arrangement, allow_differences)
        except (EvaluationError, IntervalError) as error:
            problem = printable(str(error))
            if groups is not None:
                raise EvaluationError(f"{data.title}: {problem}") from error
    if pair:
        raise EvaluationError(f"{data.title}: {problem}")
    runs = list(data.runs.values())
    names = [printable(name) for name in run_labels(runs)]
    looks = [unpaired(place, name) for place, name in zip(data.runs, names, strict=True)]
    members = tuple(
        Member(look, run, run_accuracy(run, look.name, DistinctQuestions.of(run), run.summary["confidence"]))
        for look, run in zip(looks, runs, strict=True)
    )
    notes = [
        Note("warning", f"{member.look.label}: {text}") for member in members for text in member.run.remarks
    ]
    copies = {told: None for run in runs if (told := DistinctQuestions.of(run).told()) is not None}
    notes += [Note("warning", text) for text in copies]
    return [
        Section(
            data.key, data.title, data.task, members, None, problem, training_overview(runs), tuple(notes)
        )
    ]


def arranged(data: DataSet[Run], groups: Groups | None, allow_differences: bool) -> Arrangement[Run]:
    """Put the runs on a data set into arms.

    Args:
        data: The runs.
        groups: Which of the sources belong to which arm; None: by the records of the trainings.
        allow_differences: Accept groups that the records contradict.

    Raises:
        EvaluationError: It is not clear which is held against which.
    """
    if groups is None:
        return arrange_runs(list(data.runs.values()), "mce-llm report")
    baseline, arms = groups
    return arrange_groups(
        [data.runs[place] for place in baseline],
        [(name, [data.runs[place] for place in places]) for name, places in arms],
        allow_differences=allow_differences,
    )


def _compared(
    data: DataSet[SavedRun], arrangement: Arrangement[SavedRun], allow_differences: bool
) -> list[Section]:
    """A section for the comparison, or one for each arm."""
    if len(arrangement.arms) == 1:
        comparison = compare_runs(
            arrangement.pairs(arrangement.arms[0]),
            allow_differences=allow_differences,
            pairing=arrangement.how,
            doubts=arrangement.doubts,
            name=arrangement.arms[0].name,
        )
        return [_section(data, arrangement, arrangement.arms[0], comparison)]
    outcome = compare_arms(arrangement, allow_differences=allow_differences)
    return [
        _section(data, arrangement, arm, result.comparison, (outcome, place))
        for place, (arm, result) in enumerate(zip(arrangement.arms, outcome.arms, strict=True))
    ]


def _section(
    data: DataSet[SavedRun],
    arrangement: Arrangement[SavedRun],
    arm: Arm[SavedRun],
    comparison: Comparison,
    among: tuple[ArmsComparison, int] | None = None,
) -> Section:
    pairs, place = arrangement.pairs(arm), 0 if among is None else among[1]
    members = []
    for number, (runs, outcome) in enumerate(zip(pairs, comparison.pairs, strict=True)):
        for side, (run, accuracy) in enumerate(zip(runs, (outcome.a, outcome.b), strict=True)):
            letter = comparison.sides[side]
            look = paired(number, len(pairs), printable(accuracy.label), letter, place if side else None)
            members.append(Member(look, run, accuracy))
    outcome_of_all = among[0] if among is not None else None
    last = outcome_of_all is not None and place == len(outcome_of_all.arms) - 1
    return Section(
        data.key if among is None else f"{data.key}-{comparison.sides[1].lower()}",
        data.title,
        data.task,
        tuple(members),
        comparison,
        None,
        comparison.trainings,
        comparison.notes,
        None if outcome_of_all is None else outcome_of_all.arms[place],
        outcome_of_all.verdict if outcome_of_all is not None and last else None,
    )


def why_not_compared(
    sources: Sequence[Source], data: DataSet[Run], groups: Groups | None, pair: bool | None
) -> str | None:
    """Say why the runs on a data set are not compared, as far as it can be told without their answers.

    Args:
        sources: All runs of the report.
        data: Those on one data set.
        groups: Which belong to which arm.
        pair: Whether a comparison is wanted.

    Returns:
        The reason; None where there is none.
    """
    if pair is False:
        return "a comparison was not wanted (--no-pair)"
    if len(data.runs) == 1 and groups is None:
        return f"there is one run on {data.title} only; a comparison takes two, A and B"
    for place, source in enumerate(sources):
        if place in data.runs or (source.is_evaluation and groups is None):
            continue
        return (
            f"{source.path} has no evaluation on {data.title}, so it is not clear which of the others is A and which B"
            if groups is None
            else f"{source.path} has no evaluation on {data.title}, where {counted(len(data.runs), 'other run')} "
            f"{'has' if len(data.runs) == 1 else 'have'} one"
        )
    return None
