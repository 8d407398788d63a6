"""One training seed: how far its mean difference over questions can be trusted beyond these questions.

What other seeds would give is not known from one; `SeedSpread` is for several. Right and wrong answers of one pair have
exact tests in `paired`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import special, stats

from mce_llm.eval.comparing.p_values import least_alpha
from mce_llm.eval.comparing.paired import least_half_width
from mce_llm.eval.comparing.question_tails import QuestionTails
from mce_llm.eval.intervals import Interval, IntervalError, check_confidence


@dataclass(frozen=True)
class QuestionSpread:
    """Mean and standard error of differences, one a question.

    Attributes:
        questions: n.
        mean: Their mean.
        error: Its standard error, s/√n.
        bound: No mean is farther from 0; None where there is no bound.
        step: The least change of one question's difference; see `SeedSpread`.
        tails: What stands in place of Student's quantiles; None: Student's.
    """

    questions: int
    mean: float
    error: float
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
    ) -> QuestionSpread:
        """Take mean and standard error.

        Args:
            differences: (n,), two at least.
            bound: No mean is farther from 0.
            step: The least change of one question's difference.
            tails: Of these differences, where they may be skewed.

        Returns:
            The spread.

        Raises:
            IntervalError: There are fewer than two.
        """
        if np.ndim(differences) != 1 or len(differences) < 2:
            raise IntervalError(
                f"an interval over questions needs a row of 2 of them at least, got the shape {np.shape(differences)}"
            )
        n = len(differences)
        error = float(np.std(differences, ddof=1)) / math.sqrt(n)
        return cls(n, float(np.mean(differences)), error, bound, step, tails)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return Student's interval, or the studentised bootstrap's where there are `tails`.

        Args:
            confidence: The coverage, strictly between 0 and 1.

        Returns:
            The interval, within `bound`.

        Raises:
            IntervalError: The confidence is out of range.
        """
        check_confidence(confidence)
        down, up = self._half_widths(confidence)
        bound = math.inf if self.bound is None else self.bound
        return Interval(max(-bound, self.mean - down), min(bound, self.mean + up))

    def _half_widths(self, confidence: float, questions: int | None = None) -> tuple[float, float]:
        upper, n = (1 + confidence) / 2, questions or self.questions
        student = float(special.stdtrit(self.questions - 1, upper))
        factors = (student, student) if self.tails is None else self.tails.factors(upper)
        error = self.error * math.sqrt(self.questions / n)
        least = self.step * least_half_width(n, confidence)
        return max(factors[0] * error, least), max(factors[1] * error, least)

    def p_value(self) -> float:
        """Return the least α at which the interval of coverage 1 − α leaves out 0; 1 where none does."""
        return least_alpha(self.mean, self.interval)

    def smallest_detectable_difference(self, confidence: float = 0.95, power: float = 0.8) -> float | None:
        """Return the least true difference that the interval would tell from 0 with this power.

        Half the interval and the normal quantile of the power times the standard error, as if that were known.

        Args:
            confidence: The interval's coverage.
            power: The probability asked for.

        Returns:
            The difference; None where nothing varies, or where it would be beyond the bound.
        """
        least = max(self._half_widths(confidence)) + float(stats.norm.ppf(power)) * self.error
        return least if 0 < least <= (math.inf if self.bound is None else self.bound) else None

    def questions_needed(self, confidence: float = 0.95, power: float = 0.8) -> int | None:
        """Return about how many questions would tell the difference seen here from 0 with this power.

        Args:
            confidence: The interval's coverage.
            power: The probability asked for.

        Returns:
            The number; None where no difference was seen.
        """
        if self.mean == 0:
            return None

        def enough(n: int) -> bool:
            error = self.error * math.sqrt(self.questions / n)
            reach = max(self._half_widths(confidence, n)) + float(stats.norm.ppf(power)) * error
            return reach <= abs(self.mean)

        low, high = 1, 2
        while not enough(high):
            low, high = high, 2 * high
            if high > 10**9:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high
