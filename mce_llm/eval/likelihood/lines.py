"""What a line of a likelihood's `items.jsonl` must be: its fields, and how their sums must fit each other.

Neither torch nor datasets is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mce_llm.eval.items import Item
from mce_llm.eval.likelihood.items import BINS, CALIBRATED, GROUPS, SUMS
from mce_llm.eval.saved_lines import COUNT, TEXT, Fields, is_count, wrong_fields

_ROUNDING = 1e-9  # relative, of sums that were added up in another order
_BEYOND = 1e300  # no sum of nats comes near; the sum of many such is still finite


def is_amount(value: Any) -> bool:
    """Whether a value is a finite number of at least 0, of a size that floating point has."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < _BEYOND


def wrong_line(item: Item) -> str | None:
    """Tell what is wrong with a line: its fields, or else its sums.

    Args:
        item: What the line holds.

    Returns:
        What is wrong, in words; None where nothing is.
    """
    return wrong_fields(item, FIELDS) or contradicting_sums(item)


def _has(parts: Sequence[str], fits: Mapping[str, Callable[[Any], bool]]) -> Callable[[Any], bool]:
    """Whether a value has all parts, each with what it must have."""

    def check(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(part := value.get(name), dict)
            and all(key in part and fit(part[key]) for key, fit in fits.items())
            for name in parts
        )

    return check


def _bins_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == BINS and all(map(fits, value))


FIELDS: Fields = {
    "index": COUNT,
    "question": TEXT,
    "gold": TEXT,
    "groups": (
        f"an object with {', '.join(GROUPS)}, each with {', '.join(SUMS)} of at least 0",
        _has(tuple(GROUPS), {"tokens": is_count, "nats": is_amount, "top1": is_count, "entropy": is_amount}),
    ),
    "calibration": (
        f"an object with {', '.join(CALIBRATED)}, each with tokens, confidence and top1 of {BINS} bins",
        _has(
            CALIBRATED,
            {"tokens": _bins_of(is_count), "confidence": _bins_of(is_amount), "top1": _bins_of(is_count)},
        ),
    ),
}


def contradicting_sums(item: Item) -> str | None:
    """Tell which sums of a line contradict each other.

    Every token is one of `numbers` or of `words`; `results` are numbers. Bins of confidence divide the tokens of their group.

    Args:
        item: What the line holds, with all `FIELDS`.

    Returns:
        The first contradiction, in words; None where there is none.
    """
    groups = item["groups"]
    counts = {name: groups[name]["tokens"] for name in GROUPS}
    if counts["numbers"] + counts["words"] != counts["all"]:
        return f"{counts['numbers']} numbers and {counts['words']} words are not the {counts['all']} tokens of all"
    if counts["results"] > counts["numbers"]:
        return (
            f"{counts['results']} results are more than the {counts['numbers']} numbers that they are among"
        )
    if counts["answer"] > counts["all"]:
        return f"{counts['answer']} tokens of the answer are more than the {counts['all']} of all"
    for name in GROUPS:
        if groups[name]["top1"] > counts[name]:
            return f"{groups[name]['top1']} top1 of {counts[name]} tokens in {name}"
        if not counts[name] and (groups[name]["nats"] or groups[name]["entropy"]):
            return f"nats or entropy of no tokens in {name}"
    for what in ("nats", "top1", "entropy"):
        parts, whole = groups["numbers"][what] + groups["words"][what], groups["all"][what]
        if not math.isclose(parts, whole, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
            return f"{what} of numbers and of words add up to {parts:g}, not to the {whole:g} of all"
        for inner, outer in (("results", "numbers"), ("answer", "all")):
            if groups[inner][what] > groups[outer][what] * (1 + _ROUNDING) + _ROUNDING:
                return f"{groups[inner][what]:g} {what} of {inner} are more than the {groups[outer][what]:g} of {outer}"
    for name in CALIBRATED:
        bins = item["calibration"][name]
        if sum(bins["tokens"]) != counts[name]:
            return f"calibration of {sum(bins['tokens'])} tokens in {name}, which has {counts[name]}"
        for tokens, confidence, hits in zip(bins["tokens"], bins["confidence"], bins["top1"], strict=True):
            if hits > tokens or confidence > tokens * (1 + _ROUNDING):
                return f"calibration of {name} with more top1 or confidence than tokens in a bin"
        if sum(bins["top1"]) != groups[name]["top1"]:
            return f"calibration of {sum(bins['top1'])} top1 in {name}, which has {groups[name]['top1']}"
    return None
