"""Confidence intervals for an accuracy, and the check of a confidence level. Standard library only."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

from mce_llm.errors import MceLlmError


class IntervalError(MceLlmError, ValueError):
    """The counts or the confidence level cannot be used."""


class Interval(NamedTuple):
    """The two ends of a confidence interval: in [0, 1] for a proportion, in [-1, 1] for a difference of two."""

    low: float
    high: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval for a proportion.

    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n), with p = successes/n and z the two-sided normal
    quantile. It keeps close to its nominal coverage near 0 and 1 and for small n, where p ± z·SE does not.
    Wilson, Journal of the American Statistical Association 22 (1927), 209–212.

    Args:
        successes: How many were right.
        n: How many there were.
        confidence: The coverage, strictly between 0 and 1.

    Returns:
        The interval.

    Raises:
        IntervalError: If a count is not an integer, `n` is below 1, `successes` is not between 0 and `n`,
            or `confidence` is not strictly between 0 and 1.
    """
    for name, count in (("successes", successes), ("n", n)):
        if isinstance(count, bool) or not isinstance(count, int):
            raise IntervalError(f"{name} must be an integer, got {count!r}")
    if n < 1:
        raise IntervalError(f"n must be at least 1, got {n}: without trials there is no interval")
    if not 0 <= successes <= n:
        raise IntervalError(f"successes must be between 0 and n = {n}, got {successes}")
    check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - spread) / scale  # exactly 0 and 1 at the ends, not 1e-18 off
    high = 1.0 if successes == n else (centre + spread) / scale
    return Interval(low, high)


def check_confidence(confidence: float) -> None:
    """Refuse a confidence level that is out of range.

    Args:
        confidence: The level; strictly between 0 and 1 where it is usable.

    Raises:
        IntervalError: It is not.
    """
    if not 0 < confidence < 1:
        raise IntervalError(
            f"confidence must be strictly between 0 and 1, got {confidence}; 0.95 is the usual choice"
        )
