"""What a comparison of evaluations has found, as data: the tables of `mce-llm compare` and of the report are made of it.

All differences are B minus A, as shares: 0.031 for 3.1 points. Nothing is computed here; `comparison` does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mce_llm.eval.comparing.notes import Mismatch, Note
from mce_llm.eval.comparing.paired import PairedCounts
from mce_llm.eval.comparing.training_differences import TrainingOverview
from mce_llm.eval.intervals import Interval


@dataclass(frozen=True)
class RunAccuracy:
    """The accuracy of one run.

    Attributes:
        label: A short name that tells it from the others.
        path: Its folder.
        model: What was evaluated.
        n: Different questions.
        asked: Questions that were asked, copies included.
        num_samples: Samples of each.
        correct: Right answers over everything that was asked, and all samples.
        accuracy: Mean over the different questions; correct / (n · num_samples) where there are no copies.
        interval: Wilson's; where questions are right in parts (several samples, copies) Student's, over questions.
        truncated: Share of answers that were cut off.
        fallback: Share of answers that were found without a marker.
    """

    label: str
    path: str
    model: str
    n: int
    asked: int
    num_samples: int
    correct: int
    accuracy: float
    interval: Interval
    truncated: float
    fallback: float

    @property
    def right(self) -> str:
        """`913 of 1,319`: right answers of all; with copies, what the different questions add up to."""
        if self.asked == self.n:
            return f"{self.correct:,} of {self.n * self.num_samples:,}"
        return f"{self.accuracy * self.n:,.6g} of {self.n:,}"


@dataclass(frozen=True)
class PairComparison:
    """A and B of one training seed.

    Attributes:
        a: The baseline.
        b: The run that is compared with it.
        counts: Who was right where; None where questions are right in parts (several samples, unlike copies).
        difference: Accuracy of B minus that of A.
        interval: For the difference of these two trained models on questions like these.
        interval_method: How it was computed.
        p_value: Of the hypothesis that they are equally good.
        test: How it was tested.
        discordance: Share of the questions whose scores differ.
    """

    a: RunAccuracy
    b: RunAccuracy
    counts: PairedCounts | None
    difference: float
    interval: Interval
    interval_method: str
    p_value: float
    test: str
    discordance: float


@dataclass(frozen=True)
class Detectable:
    """What this comparison could have found, if the rest were as it was seen.

    Attributes:
        difference: Least true difference that is found with probability `power`; None where there is none.
        needed: How many of `unit` would find the difference that was seen; None where none was seen or no number does.
        unit: questions, or pairs of seeds on these questions.
        alpha: A difference is found at p ≤ alpha, or by an interval of coverage 1 − alpha.
        power: The probability.
        method: What is to find it.
    """

    difference: float | None
    needed: int | None
    unit: str
    alpha: float
    power: float
    method: str


@dataclass(frozen=True)
class SeedResult:
    """How the differences vary over training seeds.

    Attributes:
        seeds: Pairs.
        differences: B minus A of each.
        sd: Their standard deviation.
        sd_by_chance: What it would be if seeds differed by single answers alone.
        mean_squares: Of seeds, questions and the rest, as in `SeedSpread`.
    """

    seeds: int
    differences: tuple[float, ...]
    sd: float
    sd_by_chance: float
    mean_squares: tuple[float, float, float]


@dataclass(frozen=True)
class QuestionOutcome:
    """A question on which A and B differ.

    Attributes:
        index: As in `items.jsonl`, from 0, the first of copies; tables and the report count from 1.
        copies: How often it was asked.
        question: Its text.
        gold: The reference answer.
        won: Pairs in which B did better.
        lost: Pairs in which A did.
        a: Scores of A, pair by pair.
        b: Scores of B.
        predicted_a: Answers of A (of the first sample).
        predicted_b: Those of B.
    """

    index: int
    copies: int
    question: str
    gold: str
    won: int
    lost: int
    a: tuple[float, ...]
    b: tuple[float, ...]
    predicted_a: tuple[str | None, ...]
    predicted_b: tuple[str | None, ...]


@dataclass(frozen=True)
class Comparison:
    """The outcome of `compare_runs`.

    Attributes:
        task: gsm8k or math.
        title: The data set, as people write it.
        sides: What A and B are called: A and B, or A and C where another arm is B.
        name: What people call B beside that; None where nobody said.
        n: Different questions.
        asked: Questions that were asked, copies included.
        confidence: Coverage of all intervals.
        resamples: Drawings of the bootstrap.
        seed: Of its random numbers.
        pairs: The runs by pair; A and B of a pair stand for the same training seed.
        difference: Mean over the pairs.
        interval: For one pair as there; for several over seeds and questions.
        interval_method: How it was computed.
        p_value: Of no difference: for one pair the test's; for several, the least α whose interval leaves out 0.
        bootstrap: The plain percentile interval, seeds and questions drawn anew; too narrow for few seeds.
        seeds: How the pairs vary; None with one pair.
        detectable: What could have been found.
        questions: Where A and B differ: those that B won most often first, those it lost most often last.
        pairing: By what A and B were paired, in words.
        trainings: How the trainings behind the models differ, as far as that is recorded.
        mismatches: What was allowed to differ between the runs.
        notes: What a reader must know, warnings first.
        verdict: What may be concluded, in plain words.
    """

    task: str
    title: str
    sides: tuple[str, str]
    name: str | None
    n: int
    asked: int
    confidence: float
    resamples: int
    seed: int
    pairs: tuple[PairComparison, ...]
    difference: float
    interval: Interval
    interval_method: str
    p_value: float
    bootstrap: Interval
    seeds: SeedResult | None
    detectable: Detectable
    questions: tuple[QuestionOutcome, ...]
    pairing: str
    trainings: TrainingOverview
    mismatches: tuple[Mismatch, ...]
    notes: tuple[Note, ...]
    verdict: str

    @property
    def won(self) -> tuple[QuestionOutcome, ...]:
        """Questions that B won more often than it lost, the most often won first."""
        return tuple(item for item in self.questions if item.won > item.lost)

    @property
    def lost(self) -> tuple[QuestionOutcome, ...]:
        """Questions that B lost more often than it won, the most often lost first."""
        lost = [item for item in self.questions if item.lost > item.won]
        return tuple(sorted(lost, key=lambda item: item.won - item.lost))

    def to_dict(self) -> dict[str, Any]:
        """The whole comparison as `json.dumps` takes it."""
        return asdict(self)
