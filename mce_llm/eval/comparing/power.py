"""What a paired comparison can detect: power of McNemar's exact test, computed from the binomial distributions.

Differences and discordances are shares, not points: 0.031 for 3.1 points. Power is the probability that the test
rejects *and* points the right way. Several training seeds have a calculation of their own in `training_seeds`.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from scipy import stats

from mce_llm.eval.intervals import IntervalError

ALPHA = 0.05
POWER = 0.8
_TAIL = 1e-12  # probability of the numbers of discordant questions that are left out
_MOST_QUESTIONS = 10**7


def mcnemar_power(n: int, discordance: float, difference: float, alpha: float = ALPHA) -> float:
    """Return the probability that McNemar's exact test finds a difference.

    The number of discordant questions M is binomial(n, discordance); of these, binomial(M, π) favour the better
    model, π = (discordance + |difference|) / 2·discordance. Both distributions are summed, nothing is simulated.

    Args:
        n: Questions.
        discordance: Share of the questions that exactly one model answers rightly.
        difference: True difference of the accuracies; its sign does not matter.
        alpha: The test rejects at p ≤ alpha.

    Returns:
        The power.

    Raises:
        IntervalError: An argument is out of range; a difference cannot exceed the discordance.
    """
    _check(n, discordance, alpha)
    if not abs(difference) <= discordance * (1 + 1e-12):
        raise IntervalError(
            f"the difference must be at most the discordance of {discordance:g}, got {abs(difference):g}: each "
            "question by which the accuracies differ is discordant"
        )
    if discordance == 0:
        return 0.0
    return _power(*_discordant(n, discordance, alpha), discordance, abs(difference))


def smallest_detectable_difference(
    n: int, discordance: float, alpha: float = ALPHA, power: float = POWER
) -> float | None:
    """Return the least true difference that the test finds with this power.

    Args:
        n: Questions.
        discordance: Share of the questions that exactly one model answers rightly; held fixed.
        alpha: The test rejects at p ≤ alpha.
        power: The probability asked for.

    Returns:
        The difference; None where even the largest possible one, the whole discordance, is found more rarely.

    Raises:
        IntervalError: An argument is out of range.
    """
    _check(n, discordance, alpha, power)
    if discordance == 0:
        return None
    table = _discordant(n, discordance, alpha)
    low, high = 0.0, discordance
    if _power(*table, discordance, high) < power:
        return None
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _power(*table, discordance, middle) < power:
            low = middle
        else:
            high = middle
    return high


def questions_needed(
    difference: float, discordance: float, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Return how many questions it takes to find a difference with this power.

    The search begins at the normal approximation and ends at a number whose exact power suffices, while one a
    thousandth smaller (or smaller by one question) does not: power climbs in small teeth, so there may be others.

    Args:
        difference: True difference of the accuracies; its sign does not matter.
        discordance: Share of the questions that exactly one model answers rightly.
        alpha: The test rejects at p ≤ alpha.
        power: The probability asked for.

    Returns:
        The number; None where there is no difference, or where it would be more than 10 million.

    Raises:
        IntervalError: An argument is out of range; a difference cannot exceed the discordance.
    """
    _check(1, discordance, alpha, power)
    difference = abs(difference)

    def enough(n: int) -> bool:
        return mcnemar_power(n, discordance, difference, alpha) >= power

    if difference == 0:
        return None
    normal = NormalDist()
    spread = normal.inv_cdf(1 - alpha / 2) * math.sqrt(discordance)
    spread += normal.inv_cdf(power) * math.sqrt(max(discordance - difference**2, 0.0))
    guess = math.ceil((spread / difference) ** 2)
    if guess > _MOST_QUESTIONS:
        return None
    low = high = max(1, guess)
    while low > 1 and enough(low):
        high, low = low, int(low * 0.9)
    while not enough(high):
        low, high = high, math.ceil(high * 1.1) + 1
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _discordant(n: int, discordance: float, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Likely numbers M of discordant questions, their probabilities, and of each the largest losing side rejected."""
    first, last = stats.binom.ppf([_TAIL / 2, 1 - _TAIL / 2], n, discordance)
    discordant = np.arange(max(1, int(first)), int(last) + 1)
    chances = stats.binom.pmf(discordant, n, discordance)
    # ppf is the first count whose probability reaches alpha/2: it is rejected itself only where it hits it exactly.
    critical = stats.binom.ppf(alpha / 2, discordant, 0.5)
    critical -= 2 * stats.binom.cdf(critical, discordant, 0.5) > alpha
    return discordant, chances, critical


def _power(
    discordant: np.ndarray, chances: np.ndarray, critical: np.ndarray, discordance: float, difference: float
) -> float:
    """Probability that the worse model wins so few discordant questions that the test rejects."""
    worse = max(0.0, (discordance - difference) / (2 * discordance))
    return float(chances @ stats.binom.cdf(critical, discordant, worse))


def _check(n: int, discordance: float, alpha: float, power: float = POWER) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise IntervalError(f"n must be an integer of at least 1, got {n!r}")
    if not 0 <= discordance <= 1:
        raise IntervalError(
            f"discordance must be between 0 and 1, got {discordance}; it is a share, not points"
        )
    for name, value in (("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise IntervalError(f"{name} must be strictly between 0 and 1, got {value}")
