"""The errors of evaluation: problems with a model, options or an output directory that the caller can mend."""

from __future__ import annotations

from mce_llm.errors import MceLlmError


class EvaluationError(MceLlmError, ValueError):
    """The model, the options or the output directory cannot be used as asked; the message says what to change."""


class GenerationError(EvaluationError):
    """The model cannot answer these prompts; of several processes this may concern one alone."""
