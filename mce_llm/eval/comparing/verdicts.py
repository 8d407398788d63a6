"""Numbers of a comparison as words: points, p-values, and the one sentence that says what may be concluded."""

from __future__ import annotations

from mce_llm.eval.intervals import Interval


def points(share: float, *, sign: bool = False) -> str:
    """A share in percentage points: one decimal, two where it would be 0.0 otherwise.

    Args:
        share: Such as 0.031.
        sign: Write the plus of a positive one.

    Returns:
        Such as `3.1`, with a real minus sign.
    """
    value = 100 * share
    text = f"{abs(value):.1f}" if abs(value) >= 0.05 else f"{abs(value):.2f}"
    if float(text) == 0:
        return "0.0"
    return f"{'−' if value < 0 else '+' if sign else ''}{text}"


def p_text(p_value: float) -> str:
    """`p = 0.031`, `p < 0.0001` or `p = 1`."""
    if p_value < 0.0001:
        return "p < 0.0001"
    return f"p = {p_value:.2g}" if p_value < 0.9995 else "p = 1"


def percent(confidence: float) -> str:
    """`95 %`, `99.5 %`."""
    return f"{100 * confidence:g} %"


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

    Returns:
        One to three sentences.
    """
    apart = not interval.low <= 0 <= interval.high
    rejected = apart if p_value is None else p_value <= 1 - confidence
    tested = f"; {test} {p_text(p_value)}" if p_value is not None else ""
    better, worse = ("B", "A") if difference > 0 else ("A", "B")
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
    seen = f"These runs do not tell A and B apart: B minus A is {points(difference, sign=True)} points ({bounds})."
    here = (
        f"{n:,} questions, {discordance:.1%} of them answered unlike"
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
