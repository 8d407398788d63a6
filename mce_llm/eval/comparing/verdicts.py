"""Numbers of a comparison as words: points, p-values, and the one sentence that says what may be concluded."""

from __future__ import annotations

from mce_llm.eval.intervals import Interval
from mce_llm.eval.wording import hundredfold, share_text
from mce_llm.running.messages import counted

_MOST_DECIMALS = 12


def points(share: float, *, sign: bool = False) -> str:
    """A share in percentage points: one decimal, two where it would be 0.0 otherwise.

    Args:
        share: Such as 0.031.
        sign: Write the plus of a positive one.

    Returns:
        Such as `3.1`, with a real minus sign.
    """
    text = hundredfold(abs(share))
    if float(text) == 0:
        text = hundredfold(abs(share), 2)
    if float(text) == 0:
        return "0.0"
    return f"{'−' if share < 0 else '+' if sign else ''}{text}"


def p_text(p_value: float) -> str:
    """`p = 0.031`, `p < 0.0001` or `p = 1`."""
    if p_value < 0.0001:
        return "p < 0.0001"
    return f"p = {p_value:.2g}" if p_value < 0.9995 else "p = 1"


def percent(confidence: float) -> str:
    """`95 %`, `99.5 %`, `97.5 %`; more decimals only where there are, and where it would be 0 or 100 otherwise."""
    decimals = 2
    while round(100 * confidence, decimals) in (0, 100) and 0 < confidence < 1 and decimals < _MOST_DECIMALS:
        decimals += 1
    return f"{round(100 * confidence, decimals):.{decimals}f}".rstrip("0").rstrip(".") + " %"


def verdict(
    *,
    difference: float,
    interval: Interval,
    confidence: float,
    seeds: int,
    n: int,
    test: str | None,
    p_value: float | None,
    discordance: float,
    detectable: float | None,
    sides: tuple[str, str] = ("A", "B"),
) -> str:
    """Say what a comparison shows, in plain words.

    A difference counts as found where the interval leaves out 0 and, with one seed, the test agrees.

    Args:
        difference: Accuracy of B minus that of A, a share.
        interval: Its interval.
        confidence: Of the interval.
        seeds: Pairs that were compared.
        n: Questions.
        test: Name of the test; None with several seeds.
        p_value: Its outcome.
        discordance: Share of the questions whose scores differ.
        detectable: Least true difference that is found four times out of five.
        sides: What A and B are called.

    Returns:
        One to three sentences.
    """
    apart = not interval.low <= 0 <= interval.high
    rejected = apart if p_value is None else p_value <= 1 - confidence
    tested = f"; {test} {p_text(p_value)}" if p_value is not None else ""
    a, b = sides
    better, worse = (b, a) if difference > 0 else (a, b)
    alone = " It is one training seed each: nothing here knows of other seeds." if seeds == 1 else ""
    if apart and rejected:
        low, high = interval if difference > 0 else (-interval.high, -interval.low)
        size = f"{better} is better than {worse} by {points(abs(difference))} points"
        bounds = f"({percent(confidence)} interval {points(low)} to {points(high)}{tested})"
        if seeds == 1:
            return f"For these two trained models {size} {bounds}.{alone}"
        return f"{size} on average over {seeds} training seeds {bounds}."
    low, high = interval
    bounds = f"{percent(confidence)} interval {points(low, sign=True)} to {points(high, sign=True)}{tested}"
    seen = f"These runs do not tell {a} and {b} apart: {b} minus {a} is {points(difference, sign=True)} points ({bounds})."
    here = (
        f"{counted(n, 'question')}, {share_text(discordance)} of them answered unlike"
        if seeds == 1
        else f"{seeds} seeds that vary like these"
    )
    reach = (
        "no difference would be found in four cases of five"
        if detectable is None
        else f"a true difference below {points(detectable)} points would be missed in more than one case of five"
    )
    torn = "" if apart == rejected else " Interval and test do not agree, so it is a close call."
    return f"{seen}{torn} With {here}, {reach}.{alone}"
