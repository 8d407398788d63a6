"""What of likelihoods stands in a report: a section a data set, all arms in it, and why there is no comparison where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mce_llm.eval.comparing.distinct_questions import DistinctQuestions
from mce_llm.eval.comparing.labels import run_labels
from mce_llm.eval.comparing.likelihood_outcome import LikelihoodComparison
from mce_llm.eval.comparing.likelihoods import compare_likelihoods
from mce_llm.eval.comparing.notes import Note
from mce_llm.eval.comparing.pairing import Arrangement
from mce_llm.eval.comparing.question_values import TokenSums
from mce_llm.eval.comparing.several_arms import LETTERS
from mce_llm.eval.comparing.training_differences import TrainingOverview, training_overview
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import IntervalError
from mce_llm.eval.likelihood.saved import SavedLikelihood
from mce_llm.eval.reporting.collect import Source
from mce_llm.eval.reporting.data_sets import DataSet, data_sets
from mce_llm.eval.reporting.looks import Look, paired, printable, unpaired
from mce_llm.eval.reporting.sections import Groups, arranged, why_not_compared


@dataclass(frozen=True)
class LikelihoodMember:
    """One evaluation of likelihoods in a section.

    Attributes:
        look: How it is drawn.
        run: Its files.
        sums: What each different question adds to its measures.
    """

    look: Look
    run: SavedLikelihood
    sums: TokenSums


@dataclass(frozen=True)
class LikelihoodSection:
    """The likelihoods of reference solutions of one data set.

    Attributes:
        key: Its name in links and files.
        data: The data set, as people call it.
        members: A, B, … pair by pair where they are compared, else in the order in which they were given.
        comparison: Its outcome, or None.
        not_compared: Why there is none, in words; None where there is one.
        trainings: In what the trainings of its runs differ.
        notes: What a reader must know.
    """

    key: str
    data: str
    members: tuple[LikelihoodMember, ...]
    comparison: LikelihoodComparison | None
    not_compared: str | None
    trainings: TrainingOverview
    notes: tuple[Note, ...]

    @property
    def title(self) -> str:
        """Its heading."""
        return f"{self.data}: likelihood"

    @property
    def sides(self) -> list[list[LikelihoodMember]]:
        """The runs of each arm, the baseline's first; each run by itself where nothing is compared."""
        if self.comparison is None:
            return [[member] for member in self.members]
        arms = 1 + len(self.comparison.arms)
        return [list(self.members[place::arms]) for place in range(arms)]


def arrange_likelihoods(
    sources: Sequence[Source],
    *,
    groups: Groups | None = None,
    pair: bool | None = None,
    allow_differences: bool = False,
) -> list[LikelihoodSection]:
    """Put likelihoods into sections and compare what can be compared; arguments and errors as for `sections.arrange`."""
    return [
        _section(data, sources, groups, pair, allow_differences)
        for data in data_sets(sources, lambda source: source.likelihoods)
    ]


def _section(
    data: DataSet[SavedLikelihood],
    sources: Sequence[Source],
    groups: Groups | None,
    pair: bool | None,
    allow_differences: bool,
) -> LikelihoodSection:
    key, title = f"{data.key}-likelihood", f"{data.title}: likelihood"
    problem = why_not_compared(sources, replace(data, title=title), groups, pair)
    if problem is None:
        try:
            arrangement = arranged(data, groups, allow_differences)
            comparison = compare_likelihoods(arrangement, allow_differences=allow_differences)
            members = tuple(_paired_members(arrangement, comparison))
            return LikelihoodSection(
                key, data.title, members, comparison, None, comparison.trainings, comparison.notes
            )
        except (EvaluationError, IntervalError) as error:
            problem = printable(str(error))
            if groups is not None:
                raise EvaluationError(f"{title}: {problem}") from error
    if pair:
        raise EvaluationError(f"{title}: {problem}")
    runs = list(data.runs.values())
    names = [printable(name) for name in run_labels(runs)]
    members = tuple(
        LikelihoodMember(unpaired(place, name), run, _sums(run, DistinctQuestions.of(run)))
        for place, name, run in zip(data.runs, names, runs, strict=True)
    )
    notes = [
        Note("warning", f"{member.look.label}: {text}") for member in members for text in member.run.remarks
    ]
    copies = {told: None for run in runs if (told := DistinctQuestions.of(run).told()) is not None}
    notes += [Note("warning", text) for text in copies]
    return LikelihoodSection(key, data.title, members, None, problem, training_overview(runs), tuple(notes))


def _paired_members(
    arrangement: Arrangement[SavedLikelihood], comparison: LikelihoodComparison
) -> list[LikelihoodMember]:
    """A, B, C, … of the first pair, then of the second: the order of `LikelihoodComparison.runs`."""
    distinct = DistinctQuestions.of(arrangement.baseline.runs[0])
    arms = (arrangement.baseline, *arrangement.arms)
    members = []
    for place, told in enumerate(comparison.runs):
        number, which = divmod(place, len(arms))
        arm = which - 1 if which else None
        letter = ("A" + LETTERS)[which]
        run = arms[which].runs[number]
        look = paired(number, comparison.pairs, printable(told.label), letter, arm)
        members.append(LikelihoodMember(look, run, _sums(run, distinct)))
    return members


def _sums(run: SavedLikelihood, distinct: DistinctQuestions) -> TokenSums:
    return TokenSums.of(run.items).distinct(distinct.places)
