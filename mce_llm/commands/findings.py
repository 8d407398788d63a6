"""What an examination found: things in order, warnings, and problems, in the order in which they came up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from mce_llm.errors import MceLlmError
from mce_llm.running.messages import cause

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ok, warning (the run would start, but look at this) or problem (it would not, or not as meant).
        subject: What was looked at: a setting, the data, the model.
        text: What was found, and what to do about it.
    """

    level: Level
    subject: str
    text: str


@dataclass
class Findings:
    """A list that grows while one part after another is examined."""

    items: list[Finding] = field(default_factory=list)

    def ok(self, subject: str, text: str) -> None:
        """Note something that is in order."""
        self.items.append(Finding("ok", subject, text))

    def warn(self, subject: str, text: str) -> None:
        """Note something to look at."""
        self.items.append(Finding("warning", subject, text))

    def problem(self, subject: str, text: str) -> None:
        """Note something that has to change."""
        self.items.append(Finding("problem", subject, text))

    def count(self, level: Level) -> int:
        """How many there are of a level."""
        return sum(item.level == level for item in self.items)

    @contextmanager
    def part(self, subject: str) -> Iterator[None]:
        """Examine one part; what it raises becomes a problem, and the next part is examined all the same."""
        try:
            yield
        except MceLlmError as error:
            self.problem(subject, str(error).strip())
        except Exception as error:  # an examination may not end in a traceback, whatever a library raises
            self.problem(subject, cause(error))
