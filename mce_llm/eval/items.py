"""The lines of `items.jsonl`, each an answer to a question with its verdict, and the names of the tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Finished = Literal["eos", "stop", "length"]

Item = dict[str, Any]
"""index, sample, question, gold, response, predicted, found_by, correct, finished, new_tokens."""

TASK_TITLES = {"gsm8k": "GSM8K", "math": "MATH", "likelihood": "Likelihood"}
"""Name of a task, as in `summary.json` → as in tables."""


@dataclass(frozen=True)
class Generation:
    """What the model answered to one prompt.

    Attributes:
        index: The prompt's place in the sequence that was passed.
        sample: Which of the answers to this prompt, from 0.
        text: The new text, without special tokens (but for tags around thoughts), cut at the earliest stop string.
        n_tokens: New tokens until EOS, the token that completed a stop string, or the limit, each included.
        finished: `eos`, `stop` (a stop string), or `length` (cut off at `max_new_tokens`).
    """

    index: int
    sample: int
    text: str
    n_tokens: int
    finished: Finished
