"""The lines of `items.jsonl`, each an answer to a question with its verdict, and the names of the tasks."""

from __future__ import annotations

from typing import Any

Item = dict[str, Any]
"""index, sample, question, gold, response, predicted, found_by, correct, finished, new_tokens."""

TASK_TITLES = {"gsm8k": "GSM8K", "math": "MATH"}
"""Name of a task, as in `summary.json` → as in tables."""
