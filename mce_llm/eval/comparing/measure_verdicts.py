"""Numbers of a measure as words, and the sentences that say what may be concluded of it."""

from __future__ import annotations

from collections.abc import Sequence

from mce_llm.eval.comparing.measure_outcome import ArmMeasure, Finding, Weight
from mce_llm.eval.comparing.measures import Measure
from mce_llm.eval.comparing.verdicts import p_text, percent, points
from mce_llm.eval.intervals import Interval
from mce_llm.eval.wording import accuracy_text
from mce_llm.running.messages import counted


def value_text(measure: Measure, value: float) -> str:
    """A run's value: `69.22 %`, or `1.4731` nats per token, with a real minus sign (an error less its bias)."""
    text = accuracy_text(abs(value)) if measure.unit == "points" else f"{abs(value):.4f}"
    return f"−{text}" if value < 0 and any(digit in text for digit in "123456789") else text


def amount(measure: Measure, difference: float, *, sign: bool = False) -> str:
    """A difference without its unit: `3.1` points, `0.0123` nats per token, with a real minus sign.

    Args:
        measure: Of what.
        difference: As a share, or in nats per token.
        sign: Write the plus of a positive one.
    """
    if measure.unit == "points":
        return points(difference, sign=sign)
    text = f"{abs(difference):.4f}"
    if float(text) == 0:
        text = f"{abs(difference):.1e}" if difference else "0.0000"
    return f"{'−' if difference < 0 else '+' if sign and difference else ''}{text}"


def interval_words(measure: Measure, interval: Interval) -> str:
    """`+0.7 to +5.5`, without the unit."""
    return f"{amount(measure, interval.low, sign=True)} to {amount(measure, interval.high, sign=True)}"


def finding_of(measure: Measure, difference: float, found: bool) -> Finding:
    """What an arm is, by the direction of a difference."""
    if not found:
        return "not told apart"
    if measure.lower_is_better is None:
        return "higher" if difference > 0 else "lower"
    return "better" if (difference < 0) == measure.lower_is_better else "worse"


def weight_of(interval: Interval, smallest: float | None) -> Weight | None:
    """How an interval lies to the smallest difference that matters."""
    if smallest is None:
        return None
    if interval.low >= smallest or interval.high <= -smallest:
        return "matters"
    return "too small to matter" if -smallest < interval.low <= interval.high < smallest else "open"


def arm_verdict(
    measure: Measure,
    arm: ArmMeasure,
    *,
    baseline: str,
    arms: int,
    confidence: float,
    smallest: float | None,
    of: str = "arms",
) -> str:
    """Say what may be concluded of one arm by one measure.

    Args:
        measure: Which.
        arm: The numbers; its own verdict is not looked at.
        baseline: What the baseline is called.
        arms: How many arms were tested.
        confidence: Of the intervals.
        smallest: The smallest difference that matters; None where none was declared.
        of: What was tested so many times: `arms`, or `contrasts`.

    Returns:
        A few sentences.
    """
    seeds = len(arm.seeds)
    over = f" on average over {seeds} training seeds" if seeds > 1 else ""
    several = (
        f"; simultaneous over {arms} {of} {interval_words(measure, arm.simultaneous)}" if arms > 1 else ""
    )
    corrected = f", corrected for {arms} {of} (Holm) {p_text(arm.p_holm)}" if arms > 1 else ""
    numbers = f"{percent(confidence)} interval {interval_words(measure, arm.interval)}{several}; {p_text(arm.p_value)}{corrected}"
    if arm.found:
        said = (
            f"{arm.name} is {arm.finding} than {baseline} by {amount(measure, abs(arm.difference))} {measure.unit}{over} "
            f"({arm.name} minus {baseline} {amount(measure, arm.difference, sign=True)}; {numbers})."
        )
    else:
        said = (
            f"These runs do not tell {arm.name} and {baseline} apart: {arm.name} minus {baseline} is "
            f"{amount(measure, arm.difference, sign=True)} {measure.unit}{over} ({numbers})."
        )
    alone = " It is one training seed each: nothing here knows of other seeds." if seeds == 1 else ""
    which = "simultaneous interval" if arms > 1 else "interval"
    return f"{said}{_weighed(measure, arm, smallest, which)}{alone}"


def _weighed(measure: Measure, arm: ArmMeasure, smallest: float | None, which: str) -> str:
    if smallest is None:
        return ""
    size = f"{amount(measure, smallest)} {measure.unit}"
    if arm.weight == "matters":
        return f" It is larger than the {size} that matter."
    if arm.weight == "too small to matter":
        return f" Whatever the true difference is, it is smaller than the {size} that matter: the {which} lies within ± that."
    if arm.found:
        return f" Whether it is the {size} that matter is open: the {which} holds smaller and larger differences."
    return f" That is not the same as being equal: the {which} holds differences of the {size} that matter."


def conclusion(
    measure: Measure, arms: Sequence[ArmMeasure], *, baseline: str, confidence: float, primary: bool
) -> str:
    """Say what may be concluded of all arms by one measure.

    Args:
        measure: Which.
        arms: Their numbers.
        baseline: What the baseline is called.
        confidence: Of the intervals.
        primary: Whether the measure was named before as the one that decides.
    """
    told = []
    for finding in ("better", "worse", "higher", "lower"):
        names = [arm.name for arm in arms if arm.finding == finding]
        if names:
            told.append(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {finding} than {baseline}")
    same = [arm.name for arm in arms if not arm.found and arm.weight == "too small to matter"]
    if same:
        told.append(
            f"{', '.join(same)} {'differs' if len(same) == 1 else 'differ'} from {baseline} by less than what matters, if at "
            "all"
        )
    rest = [arm.name for arm in arms if not arm.found and arm.weight != "too small to matter"]
    if rest:
        told.append(f"{', '.join(rest)} {'is' if len(rest) == 1 else 'are'} not told apart from {baseline}")
    corrected = (
        f" The probability of any false finding among {counted(len(arms), 'arm')} is at most {percent(1 - confidence)} (Holm)."
        if len(arms) > 1
        else ""
    )
    kind = " (the primary measure)" if primary else ""
    return f"{measure.title[0].upper()}{measure.title[1:]}{kind}: {'; '.join(told)}.{corrected}"
