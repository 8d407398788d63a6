"""The error of this room: what a command line prints as one line instead of a traceback."""

from __future__ import annotations

from mce_llm.errors import MceLlmError


class EvaluationError(MceLlmError, ValueError):
    """The model, the options or the output directory cannot be used as asked; the message says what to change."""


class GenerationError(EvaluationError):
    """The model cannot answer these prompts; unlike the others, this can happen on one process alone."""
