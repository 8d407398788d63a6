"""The error for data, prompts and tokenizers, and helpers for its messages.

Every message says where (file, line or record), what was found, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mce_llm.errors import MceLlmError


class DataError(MceLlmError, ValueError):
    """The data, the prompt or the tokenizer cannot be used as asked; the message says what to change."""


def shorten(value: object, limit: int = 60) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters for an error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def problem_list(first: Sequence[str], total: int) -> str:
    """Lay out the first few problems, one a line, and say how many more there are."""
    lines = "".join(f"\n  - {problem}" for problem in first)
    more = total - len(first)
    return lines + (f"\n  … and {more} more" if more > 0 else "")
