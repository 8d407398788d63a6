"""p-values that belong to intervals, and their correction for how many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mce_llm.eval.intervals import Interval


def least_alpha(estimate: float, interval: Callable[[float], Interval]) -> float:
    """Return the least α at which the interval of coverage 1 − α leaves out 0; 1 where none does.

    The interval is the test turned round: widths grow with the coverage, so this is found by bisection. It is as careful
    as the interval is.

    Args:
        estimate: What the intervals lie around.
        interval: The interval for a coverage strictly between 0 and 1; its ends move outwards as that grows.
    """

    def leaves_out_zero(alpha: float) -> bool:
        if alpha <= 1e-15:
            return False
        low, high = interval(1 - alpha)
        return not low <= 0 <= high

    if estimate == 0:
        return 1.0
    low, high = 0.0, 1.0  # of α: excluded at high, not at low
    if not leaves_out_zero(high - 1e-9):
        return 1.0
    while high - low > 1e-12 and high - low > 1e-6 * high:
        middle = (low + high) / 2
        if leaves_out_zero(middle):
            high = middle
        else:
            low = middle
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values.

    In the order of p, the k-th smallest is multiplied by m − k + 1, and none is made smaller than one before it:
    p̃₍k₎ = max over j ≤ k of min(1, (m − j + 1)·p₍j₎). To reject where p̃ ≤ α keeps the probability of any false rejection
    at α, under every dependence. Holm, Scandinavian Journal of Statistics 6 (1979), 65–70.

    Args:
        p_values: One a comparison.

    Returns:
        The adjusted values, in the same order.
    """
    m, largest = len(p_values), 0.0
    adjusted = [0.0] * m
    for rank, place in enumerate(sorted(range(m), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (m - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
