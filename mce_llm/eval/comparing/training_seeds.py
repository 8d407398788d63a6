"""Several training seeds on the same questions: how far their mean difference can be trusted beyond both.

`D[s, q]` is the score of B minus that of A on question q, both trained with seed s: S rows, n columns. The model is
d_sq = μ + a_s + b_q + e_sq: chance in training, questions that suit one method more, and the rest. The interval is for
μ, over seeds and questions that were not tried. One seed has no spread: then use `paired`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import special, stats

from mce_llm.eval.comparing.p_values import least_alpha
from mce_llm.eval.comparing.paired import least_half_width
from mce_llm.eval.comparing.question_tails import QuestionTails
from mce_llm.eval.intervals import Interval, IntervalError, check_confidence

_CHUNK = 500  # resamples at a time: 5 MB for 1,319 questions
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class SeedSpread:
    """The parts of the variation of a table of differences.

    Attributes:
        seeds: S.
        questions: n.
        mean: Mean of all differences.
        seed_mean_square: n/(S−1) · Σ (mean of seed s − mean)²; expected to be n·var(a) + var(e).
        question_mean_square: S/(n−1) · Σ (mean of question q − mean)²; expected to be S·var(b) + var(e).
        residual_mean_square: What neither explains, over (S−1)(n−1); expected to be var(e).
        bound: No difference is farther from 0; None where differences have no bound.
        step: The least change of one question's score, 0 where it is as small as one likes: intervals are never
            narrower than so many `least_half_width`.
        tails: What stands in place of Student's quantiles for questions; None: Student's.
    """

    seeds: int
    questions: int
    mean: float
    seed_mean_square: float
    question_mean_square: float
    residual_mean_square: float
    bound: float | None = 1.0
    step: float = 1.0
    tails: QuestionTails | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        differences: np.ndarray,
        *,
        bound: float | None = 1.0,
        step: float = 1.0,
        tails: QuestionTails | None = None,
    ) -> SeedSpread:
        """Split the variation of a table.

        Args:
            differences: (S, n), two of each at least.
            bound: No difference is farther from 0: 1 for shares, None where there is no bound.
            step: The least change of one question's score: 1 for right and wrong answers.
            tails: Of the questions' mean differences, where these may be skewed.

        Returns:
            The mean squares.

        Raises:
            IntervalError: The table is too small or is no table.
        """
        table_SQ = _table(differences)
        seeds, questions = table_SQ.shape
        mean = table_SQ.mean()
        by_seed, by_question = table_SQ.mean(axis=1), table_SQ.mean(axis=0)
        rest_SQ = table_SQ - by_seed[:, None] - by_question[None, :] + mean
        return cls(
            seeds=seeds,
            questions=questions,
            mean=float(mean),
            seed_mean_square=float(questions * ((by_seed - mean) ** 2).sum() / (seeds - 1)),
            question_mean_square=float(seeds * ((by_question - mean) ** 2).sum() / (questions - 1)),
            residual_mean_square=float((rest_SQ**2).sum() / ((seeds - 1) * (questions - 1))),
            bound=bound,
            step=step,
            tails=tails,
        )

    @property
    def observed_sd(self) -> float:
        """Standard deviation of the seeds' mean differences."""
        return math.sqrt(self.seed_mean_square / self.questions)

    @property
    def sd_by_chance(self) -> float:
        """What `observed_sd` would be if training had no chance in it beyond single answers."""
        return math.sqrt(self.residual_mean_square / self.questions)

    @property
    def question_variance(self) -> float:
        """Estimate of var(b), 0 where the residual explains it."""
        return max(0.0, self.question_mean_square - self.residual_mean_square) / self.seeds

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return an interval for the mean difference over seeds and questions.

        mean ± √(t²·s²/S + t'²·var(b)/n), s the standard deviation of the seeds' means, t and t' Student's quantiles for
        S−1 and n−1 degrees of freedom. A quantile for each part keeps the coverage at nominal or above, whatever their
        proportion (Banerjee, Sankhyā 22 (1960), 357, for sums of independent parts). To add the variances first and
        find one common t (Satterthwaite) is narrower, and covers only 91 % for two seeds that differ much; see
        benchmarks/interval_coverage.py. The interval is never narrower than for these trained models alone, so seeds
        that happen to agree do not feign certainty, nor than `step` times `least_half_width`. With `tails`, their factors
        stand in place of t', one for each side.

        Args:
            confidence: The coverage, strictly between 0 and 1.

        Returns:
            The interval, within `bound`.

        Raises:
            IntervalError: The confidence is out of range.
        """
        check_confidence(confidence)
        sides = self._half_widths(confidence, self.seeds, np.array([self.seed_mean_square]))
        down, up = (float(side[0]) for side in sides)
        bound = math.inf if self.bound is None else self.bound
        return Interval(max(-bound, self.mean - down), min(bound, self.mean + up))

    def p_value(self) -> float:
        """Return the least α at which the interval of coverage 1 − α leaves out 0; 1 where none does."""
        return least_alpha(self.mean, self.interval)

    def _half_widths(
        self, confidence: float, seeds: int, seed_mean_squares: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """How far it reaches down and up with S seeds whose means vary so; the other parts as they were seen here."""
        n, upper = self.questions, (1 + confidence) / 2
        t_seeds, t_questions = float(special.stdtrit(seeds - 1, upper)), float(special.stdtrit(n - 1, upper))
        over_seeds = t_seeds**2 * seed_mean_squares / (seeds * n)
        least = self.step * least_half_width(n, confidence)

        def reach(factor: float) -> np.ndarray:
            given_models = factor**2 * self.residual_mean_square / (seeds * n)
            questions = factor**2 * self.question_variance / n
            return np.maximum(np.sqrt(np.maximum(over_seeds, given_models) + questions), least)

        down, up = (t_questions, t_questions) if self.tails is None else self.tails.factors(upper)
        return reach(down), reach(up)

    def power(self, difference: float, seeds: int, confidence: float = 0.95) -> float:
        """Return the probability that the interval from this many seeds lies on the right side of 0.

        As if the parts of the variation were known to be what was seen here. The seeds' mean square is then a scaled χ²
        with S−1 degrees of freedom, independent of the mean; the probability is averaged over its quantiles.

        Args:
            difference: True difference; its sign does not matter.
            seeds: S, two at least.
            confidence: The interval's coverage.

        Returns:
            The power.
        """
        return _power(difference, *self._outlook(seeds, confidence))

    def _outlook(self, seeds: int, confidence: float) -> tuple[np.ndarray, float]:
        """Half the widths that intervals from so many seeds would have, and the standard error of their middle."""
        expected = max(self.seed_mean_square, self.residual_mean_square)
        error = math.sqrt(self.question_variance / self.questions + expected / (seeds * self.questions))
        places = (np.arange(200) + 0.5) / 200
        shares = stats.chi2.ppf(places, seeds - 1) / (seeds - 1)
        return np.maximum(*self._half_widths(confidence, seeds, expected * shares)), error

    def smallest_detectable_difference(
        self, confidence: float = 0.95, power: float = 0.8, seeds: int | None = None
    ) -> float | None:
        """Return the least true difference that the interval would tell from 0 with this power.

        Args:
            confidence: The interval's coverage.
            power: The probability asked for.
            seeds: With so many seeds; by default as many as here.

        Returns:
            The difference; None where even the largest there can be would be missed more often, or nothing varies.
        """
        outlook = self._outlook(seeds or self.seeds, confidence)

        def enough(value: float) -> bool:
            return _power(value, *outlook) >= power

        if self.bound is not None:
            return _least(enough, self.bound)
        most = float(outlook[0].max())
        while most > 0 and not enough(most):
            most *= 2
        return _least(enough, most) if most > 0 else None

    def seeds_needed(self, difference: float, confidence: float = 0.95, power: float = 0.8) -> int | None:
        """Return how many seeds, on these questions, tell a difference from 0 with this power.

        Args:
            difference: True difference; its sign does not matter.
            confidence: The interval's coverage.
            power: The probability asked for.

        Returns:
            The number of pairs; None where 1,000 do not suffice, since more seeds do not replace more questions.
        """
        low, high = 1, 2
        while self.power(difference, high, confidence) < power:
            if high >= _MOST_SEEDS:
                return None
            low, high = high, min(2 * high, _MOST_SEEDS)
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.power(difference, middle, confidence) >= power
            low, high = (low, middle) if enough else (middle, high)
        return high


def bootstrap_interval(
    differences: np.ndarray, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the plain percentile bootstrap interval, seeds and questions drawn anew independently (crossed).

    With one seed only the questions are drawn. With few seeds it is too narrow: drawing S of S seeds shows
    (S−1)/S of their variance, and percentiles know nothing of t quantiles. Reported beside `SeedSpread.interval`
    because papers use it.

    Args:
        differences: (S, n).
        confidence: The coverage, strictly between 0 and 1.
        resamples: Drawings.
        seed: Of the random numbers.

    Returns:
        The interval.

    Raises:
        IntervalError: The confidence is out of range, there are too few resamples, or there is no table.
    """
    check_confidence(confidence)
    if resamples < 100:
        raise IntervalError(f"resamples must be at least 100, got {resamples}; 10,000 is the usual choice")
    # Questions with the same differences are alike: drawing how many of each kind there are is drawing questions.
    kinds_SK, counts_K = np.unique(_table(differences, least=1), axis=1, return_counts=True)
    seeds, questions = len(kinds_SK), int(counts_K.sum())
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        seeds_RS = generator.multinomial(seeds, [1 / seeds] * seeds, size) / seeds
        questions_RK = generator.multinomial(questions, counts_K / questions, size) / questions
        means.append(((seeds_RS @ kinds_SK) * questions_RK).sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _table(differences: np.ndarray, least: int = 2) -> np.ndarray:
    table_SQ = np.asarray(differences, dtype=np.float64)
    if table_SQ.ndim != 2 or min(table_SQ.shape) < least:
        raise IntervalError(
            f"differences must be a table of seeds × questions, {least} of each at least, got the shape "
            f"{table_SQ.shape}"
        )
    return table_SQ


def _power(difference: float, halves: np.ndarray, error: float) -> float:
    """Mean over equally likely half widths of the probability that the middle is farther from 0 than that."""
    if error == 0:
        return float((abs(difference) > halves).mean())
    return float(stats.norm.cdf((abs(difference) - halves) / error).mean())


def _least(enough: Callable[[float], bool], most: float) -> float | None:
    """The least number up to `most` for which a condition holds that goes on holding; None where there is none."""
    low, high = 0.0, most
    if not enough(high):
        return None
    while high - low > 1e-6 * most:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
