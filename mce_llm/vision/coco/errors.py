"""What detection can refuse: its data, a detector, predictions to be evaluated."""

from __future__ import annotations

from mce_llm.errors import MceLlmError


class CocoDataError(MceLlmError, ValueError):
    """Annotations or images that cannot be used; the message lists what is wrong.

    Args:
        message: What is wrong. Of an error in a worker process torch makes one anew, with the worker's traceback in
            front; the reader needs the last part alone.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit("CocoDataError: ", 1)[-1].strip())


class DetectorError(MceLlmError, ValueError):
    """A detector that cannot be built or loaded; the message says which setting or file to change."""


class CocoEvaluationError(MceLlmError, RuntimeError):
    """Predictions that do not belong to the images they are judged on."""
