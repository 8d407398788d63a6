"""How far a mean over questions can be off where contributions are skewed: the studentised bootstrap.

Student's quantiles hold for means of symmetric values. Nats of a question are unbounded above, and differences of them
may be skewed; then the mean's error leans to one side, and its standard error is small just where the mean is. The
bootstrap of the t statistic shows both (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

from mce_llm.eval.intervals import IntervalError

RESAMPLES = 10_000
_CELLS = 1_000_000  # of a chunk of resamples
_MOST_KEPT = 20_000_000  # cells, of four bytes each
_TAIL = 10  # resamples beyond the last quantile that is read off; further out the form is Student's


def _resamples(n: int, wanted: int, seed: int) -> Iterable[np.ndarray]:
    """How often each of n questions is drawn, chunk by chunk; the same for all measures and arms, so kept where it is small."""
    return _kept(n, wanted, seed) if n * wanted <= _MOST_KEPT else _drawn(n, wanted, seed)


@lru_cache(maxsize=2)
def _kept(n: int, wanted: int, seed: int) -> tuple[np.ndarray, ...]:
    return tuple(_drawn(n, wanted, seed))


def _drawn(n: int, wanted: int, seed: int) -> Iterator[np.ndarray]:
    generator, chunk = np.random.default_rng(seed), max(1, _CELLS // n)
    for start in range(0, wanted, chunk):
        size = min(chunk, wanted - start)
        places = generator.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * n).reshape(size, n).astype(np.uint32)


@dataclass(frozen=True, eq=False)
class QuestionTails:
    """Quantiles of (mean* − mean) / standard error* over resamples of questions.

    Attributes:
        statistics: Of all resamples, ascending.
        n: Questions.
    """

    statistics: np.ndarray
    n: int

    @classmethod
    def of(cls, values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> QuestionTails | None:
        """Draw questions anew.

        Half of the resamples are drawn, and the other half are the same with each question replaced by the one as far
        from the other end in the order of the values: so the outcome does not depend on the order of the questions,
        and of values with the other sign it is the mirror image.

        Args:
            values: (n,), a number a question.
            resamples: How many.
            seed: Of the random numbers.

        Returns:
            The quantiles; None where all values are equal, or there is one only.

        Raises:
            IntervalError: There are too few resamples to read quantiles off.
        """
        if resamples < 100:
            raise IntervalError(
                f"resamples must be at least 100, got {resamples}; 10,000 is the usual choice"
            )
        n = len(values)
        if n < 2 or values.min() == values.max():
            return None
        scaled = np.sort((values - values.mean()) / values.std(ddof=1))
        powers = np.stack([scaled, scaled**2, scaled[::-1], scaled[::-1] ** 2], axis=1)
        found = []
        for counts in _resamples(n, resamples // 2, seed):
            means = counts.astype(np.float64) @ powers / n
            for mean, square in (means[:, :2].T, means[:, 2:].T):
                error = np.sqrt(np.maximum(square - mean**2, 0) / (n - 1))
                # A resample of one question many times has no error: it is as far out as can be.
                with np.errstate(divide="ignore", invalid="ignore"):
                    found.append(np.where(error > 1e-9, mean / error, np.sign(mean) * np.inf))
        return cls(np.sort(np.concatenate(found)), n)

    def factors(self, upper: float) -> tuple[float, float]:
        """How many standard errors an interval reaches down, and up.

        The bootstrap's quantiles, never below Student's, since either alone covers too little somewhere: Student's where
        contributions are skewed, the bootstrap where outliers are rare on both sides
        (`benchmarks/measure_coverage.py`). Nor above Student's for one degree of freedom, where resamples say that
        nothing is known. Beyond the last ten resamples they grow as Student's do.

        Args:
            upper: 1 − α/2, for an interval of coverage 1 − α.

        Returns:
            The factor below the mean and the one above.
        """
        student = float(special.stdtrit(self.n - 1, upper))
        most = float(special.stdtrit(1, upper))
        known = min(upper, 1 - _TAIL / len(self.statistics))
        growth = student / float(special.stdtrit(self.n - 1, known)) if known < upper else 1.0
        sides = (self._quantile(known), -self._quantile(1 - known))
        down, up = (min(max(student, side * growth), max(most, student)) for side in sides)
        return down, up

    def _quantile(self, share: float) -> float:
        """Interpolated; infinite between a number and infinity."""
        place = share * (len(self.statistics) - 1)
        below = int(np.floor(place))
        low, high = (float(self.statistics[where]) for where in (below, int(np.ceil(place))))
        for value in (low, high):
            if np.isinf(value):
                return value
        return low + (place - below) * (high - low)
