"""Shares as text, rounded in one place: the same number reads the same at the terminal, in tables and in pictures."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

ACCURACY_DECIMALS = 2
"""Of accuracies, pass@k and votes, in per cent; everything else has one."""
_NOISE = 12  # decimals of a share beyond which there is only the noise of floating point


def hundredfold(share: float, decimals: int = 1) -> str:
    """A share times 100, rounded half away from zero as people do: 6.3 for 0.0625 (binary formatting gives 6.2).

    Args:
        share: Such as 0.0625.
        decimals: Digits behind the point.

    Returns:
        Digits alone, with a hyphen in front where negative; never `-0.0`.
    """
    value = Decimal(repr(round(float(share), _NOISE))) * 100
    rounded = value.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    return f"{abs(rounded) if rounded.is_zero() else rounded:f}"


def share_text(share: float, decimals: int = 1) -> str:
    """`6.3 %`; `decimals` as for `hundredfold`."""
    return f"{hundredfold(share, decimals)} %"


def accuracy_text(share: float) -> str:
    """`69.22 %`."""
    return share_text(share, ACCURACY_DECIMALS)


def bounds_text(interval: tuple[float, float]) -> str:
    """`66.7 to 71.7 %`."""
    return f"{hundredfold(interval[0])} to {hundredfold(interval[1])} %"
