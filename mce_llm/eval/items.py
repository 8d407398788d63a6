"""The lines of `items.jsonl`: one answer to one question, judged."""

from __future__ import annotations

from typing import Any

Item = dict[str, Any]
"""index, sample, question, gold, response, predicted, found_by, correct, finished, new_tokens."""
