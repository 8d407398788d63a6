"""Two models on the same questions: exact tests and intervals for the difference of their accuracies.

Everything is conditional on the two models as they are; what other training seeds would give is the matter of
`training_seeds`. How many questions such a test needs is in `power`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from scipy import stats

from mce_llm.eval.intervals import Interval, IntervalError, check_confidence

# The sign-flip test takes about discordant questions² × unit steps: a few seconds at most.
_MOST_WORK = 2_000_000_000
_FINEST = 64


@dataclass(frozen=True)
class PairedCounts:
    """How often two models were right on the same questions.

    Attributes:
        both: Questions that both answered rightly.
        only_a: Those that A alone answered rightly.
        only_b: Those that B alone answered rightly.
        neither: Those that neither answered rightly.
    """

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, a: Sequence[bool], b: Sequence[bool]) -> PairedCounts:
        """Count.

        Args:
            a: Whether A was right, question by question.
            b: Whether B was, in the same order.

        Returns:
            The counts.

        Raises:
            ValueError: If they differ in length.
        """
        cells = [(bool(x), bool(y)) for x, y in zip(a, b, strict=True)]
        return cls(
            *(cells.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False)))
        )

    @property
    def n(self) -> int:
        """Questions."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def discordant(self) -> int:
        """Questions that exactly one of them answered rightly."""
        return self.only_a + self.only_b

    @property
    def difference(self) -> float:
        """Accuracy of B minus that of A."""
        return (self.only_b - self.only_a) / self.n


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    If the models were equally good, each discordant question would be a fair coin: min(1, 2·P(X ≤ min)) with X
    binomial over the discordant questions. Questions on which they agree say nothing about the difference.

    Args:
        only_a: Questions that A alone answered rightly.
        only_b: Those that B alone answered rightly.

    Returns:
        The p-value; 1 where there is no discordant question.

    Raises:
        IntervalError: If a count is not an integer of at least 0.
    """
    _check_counts(only_a=only_a, only_b=only_b)
    if only_a == only_b:
        return 1.0
    return min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def tango_interval(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Tango's score interval for the accuracy of B minus that of A.

    All Δ that the score test would not reject: |only_b − only_a − nΔ| ≤ z·√(n(2q + Δ(1−Δ))), with q the most likely
    probability of "A alone" under p_B − p_A = Δ, the larger root of a quadratic. Unlike difference ± z·SE it is right
    where discordant questions are few, also where there are none. Tango, Statistics in Medicine 17 (1998), 891–908.

    Args:
        only_a: Questions that A alone answered rightly.
        only_b: Those that B alone answered rightly.
        n: All questions.
        confidence: The coverage, strictly between 0 and 1.

    Returns:
        The interval, within [-1, 1].

    Raises:
        IntervalError: If a count is not an integer, they contradict each other, or the confidence is out of range.
    """
    _check_counts(only_a=only_a, only_b=only_b, n=n)
    check_confidence(confidence)
    if n < 1:
        raise IntervalError(f"n must be at least 1, got {n}: without questions there is no interval")
    if only_a + only_b > n:
        raise IntervalError(f"only_a + only_b must be at most n = {n}, got {only_a} + {only_b}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return Interval(-_tango_upper(only_b, only_a, n, z), _tango_upper(only_a, only_b, n, z))


def sign_flip_test(differences: Sequence[int]) -> float:
    """Return the two-sided p-value of the exact sign-flip test.

    If A and B were alike, the difference of each question would have either sign with equal probability. The
    distribution of the sum over all 2ⁿ signs is found by adding one question after another, not by drawing, so there
    is no error of simulation. With differences of −1, 0 and 1 this is McNemar's exact test. Time grows with the number
    of differences times the sum of their sizes: a second for 1,319 questions with 64 samples each.

    Args:
        differences: B minus A for each question in whole units: right samples, say.

    Returns:
        The share of all assignments of signs whose sum is as far from 0 as the one seen.
    """
    sizes = sorted(abs(int(value)) for value in differences if value)
    seen, total = abs(sum(int(value) for value in differences)), sum(sizes)
    chances, reach = np.ones(1), 0  # of the sums -reach … reach
    for size in sizes:
        wider = np.zeros(2 * (reach + size) + 1)
        wider[: 2 * reach + 1] += chances / 2
        wider[2 * size :] += chances / 2
        chances, reach = wider, reach + size
    sums = np.abs(np.arange(-total, total + 1))
    return min(1.0, float(chances[sums >= seen].sum()))


def in_whole_units(differences: Sequence[Fraction]) -> list[int]:
    """Differences as whole numbers, so that the test need not decide which sums of fractions are equal.

    Questions with many different numbers of copies have no unit of a size that the test can work with. They are rounded
    to one: that changes both signs of a difference alike, so that the test stays exact, for the rounded differences.

    Args:
        differences: B minus A for each question, as shares.

    Returns:
        The same in units of which each is a whole number, or nearly so.
    """
    discordant = sum(difference != 0 for difference in differences)
    finest = max(_FINEST, _MOST_WORK // max(1, discordant**2))
    unit = min(math.lcm(*(difference.denominator for difference in differences)), finest)
    return [round(difference * unit) for difference in differences]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return Student's interval for the mean over questions of differences in [-1, 1].

    For scores that are shares of several samples, where `tango_interval` does not apply. It is never narrower than
    Tango's would be without any discordant question, so differences that are all 0 do not give a width of 0.

    Args:
        values: One difference a question, two at least.
        confidence: The coverage, strictly between 0 and 1.

    Returns:
        The interval, within [-1, 1].

    Raises:
        IntervalError: If there are fewer than two values or the confidence is out of range.
    """
    check_confidence(confidence)
    n = len(values)
    if n < 2:
        raise IntervalError(f"an interval over questions needs 2 of them at least, got {n}")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    half = max(float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error, least_half_width(n, confidence))
    return Interval(max(-1.0, mean - half), min(1.0, mean + half))


def least_half_width(n: int, confidence: float) -> float:
    """Half of Tango's interval where no question is discordant: z²/(n + z²)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return z * z / (n + z * z)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise IntervalError(f"{name} must be an integer, got {count!r}")
        if count < 0:
            raise IntervalError(f"{name} must be at least 0, got {count}")


def _tango_upper(only_a: int, only_b: int, n: int, z: float) -> float:
    """The largest Δ that is not rejected, by bisection: from the estimate on, Δ only becomes less plausible.

    The bisection ends when there is no number between its ends.
    """
    inside, outside = (only_b - only_a) / n, 1.0
    if only_b == n:
        return 1.0
    while True:
        middle = (inside + outside) / 2
        if not inside < middle < outside:
            return inside
        if (only_b - only_a - n * middle) ** 2 <= z * z * n * _constrained_variance(
            only_a, only_b, n, middle
        ):
            inside = middle
        else:
            outside = middle


def _constrained_variance(only_a: int, only_b: int, n: int, delta: float) -> float:
    """Variance of one question's difference at the most likely probabilities with p_B − p_A = Δ."""
    if delta < 0:  # the mirror image, so that exchanging A and B changes signs and nothing else
        return _constrained_variance(only_b, only_a, n, -delta)
    half = (only_a + only_b - delta * (2 * n - only_b + only_a)) / 2
    product = 2 * n * only_a * delta * (1 - delta)
    root = math.sqrt(half * half + product)
    # The larger root of 2n·q² − 2·half·q − only_a·Δ(1−Δ), written so that nothing cancels.
    q = (half + root) / (2 * n) if half >= 0 else only_a * delta * (1 - delta) / (root - half)
    return 2 * q + delta * (1 - delta)
