"""Which questions of a data set are one and the same: copies are one observation, however often they are asked.

A model gives the same text the same answer, so twenty copies of a question say no more than one. They are one unit of
every test and interval, with the mean of their scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from mce_llm.eval.comparing.evaluations import SavedEvaluation
from mce_llm.eval.copies import question_key
from mce_llm.eval.saved_runs import SavedRun


@dataclass(frozen=True)
class DistinctQuestions:
    """The questions of an evaluation, copies put together.

    Attributes:
        places: Of each distinct question its places in the data (`index`), in the order of the first.
        disagreeing: Distinct questions whose copies have different references.
    """

    places: tuple[tuple[int, ...], ...]
    disagreeing: int

    @classmethod
    def of(cls, run: SavedEvaluation) -> DistinctQuestions:
        """Find the copies among the questions of a run."""
        places: dict[str, list[int]] = {}
        golds: dict[str, set[str]] = {}
        for item in run.first_samples:
            key = question_key(item["question"])
            places.setdefault(key, []).append(item["index"])
            golds.setdefault(key, set()).add(" ".join(item["gold"].split()))
        return cls(
            tuple(tuple(found) for found in places.values()), sum(len(found) > 1 for found in golds.values())
        )

    @property
    def n(self) -> int:
        """How many different questions there are."""
        return len(self.places)

    @property
    def asked(self) -> int:
        """How many questions were asked, copies included."""
        return sum(map(len, self.places))

    def scores(self, run: SavedRun) -> list[Fraction]:
        """Share of right answers to each distinct question, over its copies and their samples, exactly.

        Args:
            run: This run, or one on the same data.
        """
        return self.means(dict(enumerate(run.exact_scores)))

    def means(self, scores: Mapping[int, Fraction]) -> list[Fraction]:
        """Mean over the copies of each distinct question of what is known of every place."""
        return [sum((scores[place] for place in found), Fraction()) / len(found) for found in self.places]

    def told(self) -> str | None:
        """What a reader must know of copies; None where there are none."""
        if self.n == self.asked:
            return None
        most = max(map(len, self.places))
        repeated = sum(len(found) > 1 for found in self.places)
        told = (
            f"{self.asked:,} questions were asked, and {self.n:,} of them {'is' if self.n == 1 else 'are'} different: "
            f"{repeated:,} {'is' if repeated == 1 else 'are'} there more than once, up to {most:,} times. Copies of a "
            "question (the same text but for white space) count as one question, with the mean of their scores; n, "
            "accuracies, intervals and tests are over different questions"
        )
        if self.disagreeing:
            told += f". Copies of {self.disagreeing:,} of them have different references, so not all of these can be right"
        return told
