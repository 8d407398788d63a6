"""The base of every error that this package raises for what a caller or a user can mend. Standard library only."""

from __future__ import annotations

from typing import ClassVar


class MceLlmError(Exception):
    """Something that the message explains: the value, the limit, and what to do instead.

    Command lines print such an error as one line and leave with exit code 2; every other exception is a defect and
    keeps its traceback. Subclasses also derive from the built-in type that a caller would expect, such as ValueError.

    Attributes:
        one_a_line: How `running.messages.raise_all` lays out several problems: as a list, one a line, or on one line,
            separated by semicolons.
        on_every_process: Every process of the launch raises the same one, so that the first says it for all.
    """

    one_a_line: ClassVar[bool] = False
    on_every_process: bool = False


class LossInputError(MceLlmError, ValueError):
    """What a loss was given does not fit together, or it is not defined there; the message lists all problems."""


class NonFiniteLossError(MceLlmError, FloatingPointError):
    """A loss, its gradient or what it is formed from is infinite or NaN, and must not be trained on."""
