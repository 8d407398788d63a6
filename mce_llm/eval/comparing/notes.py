"""What a reader of a comparison must know, as sentences of two weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """Something that a reader of the comparison must know.

    Attributes:
        level: warning where the difference may not be one of the models, note for what is worth a look.
        text: What it is, and what to do about it.
    """

    level: Literal["warning", "note"]
    text: str


@dataclass(frozen=True)
class Mismatch:
    """Something that two runs should share and do not.

    Attributes:
        key: One of `saved_runs.COMPARABLE`.
        run: Label of the run that differs.
        reference: Label of the run that it was compared with, the first A.
        details: The settings that differ, with both values.
    """

    key: str
    run: str
    reference: str
    details: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key} ({'; '.join(self.details)})"
