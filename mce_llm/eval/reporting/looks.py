"""How each run of a report is named and drawn, the same in every table and picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mce_llm.eval.reporting.drawing import COLOURS, LINES
from mce_llm.running.visible_text import visible

_UNPAIRED = [name for name in COLOURS if name.startswith("run-")]


@dataclass(frozen=True)
class Look:
    """How one run is named and drawn, the same everywhere in a report.

    Attributes:
        tag: `A`, `B`, `A2`, … in a comparison (`C`, … for further arms), else `run 1`, …
        name: The run's own name.
        arm: Which side of the comparison it is on, or None.
        colour: A name out of `COLOURS`.
        line: A line style of matplotlib; runs of one colour have different ones.
    """

    tag: str
    name: str
    arm: Literal["A", "B"] | None
    colour: str
    line: Any

    @property
    def label(self) -> str:
        """Tag and name."""
        return f"{self.tag} · {self.name}"


def paired(number: int, pairs: int, name: str, letter: str, arm: int | None) -> Look:
    """The look of a run that is compared.

    Args:
        number: Of the pair, from 0.
        pairs: How many there are.
        name: The run's own.
        letter: What its side is called.
        arm: Which arm it is in, from 0; None for the baseline.
    """
    tag = letter if pairs == 1 else f"{letter}{number + 1}"
    if arm is None:
        return Look(tag, name, "A", "arm-a", LINES[number % len(LINES)])
    # The first of these is too near the green of "both right" to stand beside it.
    colour = "arm-b" if arm == 0 else _UNPAIRED[arm % len(_UNPAIRED)]
    return Look(tag, name, "B", colour, LINES[number % len(LINES)])


def unpaired(place: int, name: str) -> Look:
    """The look of a run that is compared with nothing, by its place in the report."""
    line = LINES[place // len(_UNPAIRED) % len(LINES)]
    return Look(f"run {place + 1}", name, None, _UNPAIRED[place % len(_UNPAIRED)], line)


def printable(text: str) -> str:
    """Names of folders may hold bytes that are no UTF-8 and characters that cannot be seen; pages and pictures cannot."""
    return visible(text, one_line=True)
