"""What goes wrong in a study."""

from __future__ import annotations

from mce_llm.errors import MceLlmError


class StudyError(MceLlmError, ValueError):
    """A study that cannot be run, or not like that; the message lists all that is wrong and says what to do."""

    one_a_line = True


class RunFailedError(MceLlmError, RuntimeError):
    """A training or an evaluation of a study failed; the message has the end of its log.

    Args:
        message: What happened.
        code: The exit code of the program that failed.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
