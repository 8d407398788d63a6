"""What a comparison of likelihoods has found, as data: the tables of `mce-llm compare` and of the report are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mce_llm.eval.comparing.measure_outcome import MeasureComparison
from mce_llm.eval.comparing.notes import Mismatch, Note
from mce_llm.eval.comparing.training_differences import TrainingOverview


@dataclass(frozen=True)
class RunLikelihood:
    """The measures of one run.

    Attributes:
        tag: A, B, … with the number of the pair behind it where there are several.
        label: A short name that tells it from the others.
        path: Its folder.
        model: What was evaluated.
        values: Name of a measure → its value over different questions: a share, or nats per token.
    """

    tag: str
    label: str
    path: str
    model: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class QuestionLikelihood:
    """How likely two methods find the reference solution of one question.

    Attributes:
        index: As in `items.jsonl`, from 0, the first of copies; tables count from 1.
        copies: How often it was asked.
        question: Its text.
        gold: The reference answer.
        tokens: Of the group that is looked at.
        a: Their nats under the baseline, summed, mean over the pairs.
        b: Under the arm.
    """

    index: int
    copies: int
    question: str
    gold: str
    tokens: float
    a: float
    b: float

    @property
    def difference(self) -> float:
        """Nats of the arm minus those of the baseline: below 0 where the arm finds the solution more likely."""
        return self.b - self.a


@dataclass(frozen=True)
class LikelihoodArm:
    """An arm of a comparison of likelihoods.

    Attributes:
        letter: B, C, …
        name: What people call it.
        questions: All questions, those that it finds more likely than the baseline does first.
    """

    letter: str
    name: str
    questions: tuple[QuestionLikelihood, ...]


@dataclass(frozen=True)
class LikelihoodComparison:
    """The outcome of `compare_likelihoods`.

    Attributes:
        task: likelihood.
        title: The data set, as people write it.
        baseline: What A is called.
        arms: B, C, …
        pairs: Runs of each, a training seed each.
        n: Different questions.
        asked: Questions that were asked, copies included.
        confidence: Of the intervals.
        resamples: Drawings of the bootstrap.
        seed: Of its random numbers.
        primary: Name of the measure that decides; None where none was named before.
        listed_by: Of what in the solutions the nats order the questions: all of the solution, the answer, …
        runs: Every run with its values, pair by pair.
        measures: Each measure over all arms, the primary first.
        pairing: By what runs were paired, in words.
        trainings: How the trainings behind the models differ, as far as that is recorded.
        mismatches: What was allowed to differ between the runs.
        notes: What a reader must know, warnings first.
        verdict: What may be concluded, in plain words.
    """

    task: str
    title: str
    baseline: str
    arms: tuple[LikelihoodArm, ...]
    pairs: int
    n: int
    asked: int
    confidence: float
    resamples: int
    seed: int
    primary: str | None
    listed_by: str
    runs: tuple[RunLikelihood, ...]
    measures: tuple[MeasureComparison, ...]
    pairing: str
    trainings: TrainingOverview
    mismatches: tuple[Mismatch, ...]
    notes: tuple[Note, ...]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """The whole comparison as `json.dumps` takes it."""
        return asdict(self)
