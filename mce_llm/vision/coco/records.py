"""What single values of an annotation file may be, and the list of all that may not.

Which parts a record has is decided where records are read: `categories`, `images`, `instances`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mce_llm.vision.coco.errors import CocoDataError

Id = int | str
"""What names an image or a category: a whole number or text, as the file has it."""

_SHOWN = 3
_LONGEST = 60
# Beyond it, tracing a polygon's edge takes minutes and gigabytes; no image is so large.
MOST_PIXELS = 1_000_000


class Problems:
    """Problems by kind, the first few of each with their place."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, place: str) -> None:
        """Note one problem.

        Args:
            kind: What is wrong, the same text for all of its kind.
            place: Where, and with which value.
        """
        self._counts[kind] = self._counts.get(kind, 0) + 1
        places = self._places.setdefault(kind, [])
        if len(places) < _SHOWN:
            places.append(place)

    def raise_all(self, path: Path) -> None:
        """Raise one error for all problems, if there are any.

        Args:
            path: The annotation file.

        Raises:
            CocoDataError: There are some; a line for each kind.
        """
        if self._places:
            lines = [
                f"{self._counts[kind]:,} × {kind}: {', '.join(places)}"
                + (", …" if self._counts[kind] > len(places) else "")
                for kind, places in self._places.items()
            ]
            raise CocoDataError("".join([f"{path} cannot be used:", *(f"\n- {line}" for line in lines)]))


def shown(value: Any) -> str:
    """A value as a message shows it: short, on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def id_of(value: Any) -> Id | None:
    """Read an id; None where it is no id. 7.0 is 7, as it is in JSON."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return None
    return value


def in_order(ids: Collection[Id]) -> list[Id]:
    """Ids in ascending order: numbers by value, then texts by their letters."""
    return sorted(ids, key=lambda value: (isinstance(value, str), value))


def other_form(value: Id, known: Collection[Id]) -> str:
    """Say that an unknown id is known as text where it is a number, or the other way round; else nothing."""
    if isinstance(value, int):
        return f"; there it is text, {str(value)!r}" if str(value) in known else ""
    try:
        return f"; there it is a number, {int(value)}" if int(value) in known else ""
    except ValueError:
        return ""


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def are_near(values: Sequence[Any]) -> bool:
    """Whether values are all finite numbers within `MOST_PIXELS` of 0: quick, for there are millions of them."""
    if not set(map(type, values)) <= {int, float}:
        return False
    try:
        total = sum(values)
    except OverflowError:  # a whole number that no float can hold
        return False
    return (
        total == total and max(map(abs, values), default=0) <= MOST_PIXELS
    )  # not a number is not even itself


def whole_number(value: Any) -> int | None:
    """Read a whole number above 0, which may be written 640.0; None for anything else."""
    if not is_number(value) or value < 1 or value != int(value):
        return None
    return int(value)
