"""Accuracy on MATH and on data like it: `accelerate launch eval/hendrycks_math.py --model MODEL --output DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from mce_llm.eval.evaluation import evaluate_task, run_command_line
from mce_llm.eval.results import Summary
from mce_llm.eval.settings import EvaluationConfig
from mce_llm.eval.tasks import MATH


@dataclass(frozen=True)
class MathConfig(EvaluationConfig):
    """The options of an evaluation on MATH: those of every task, with MATH's data and, as in MetaMath, 2,048 tokens."""

    data: str = field(
        default="math",
        metadata={
            "help": "The questions: math, gsm8k, a hub id, a directory or a .jsonl, .json, .csv or .parquet file."
        },
    )
    max_new_tokens: int = field(default=2048, metadata={"help": "The most tokens of an answer."})


def evaluate_math(
    config: MathConfig, model: Any = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Summary:
    """Answer every question with an expression, judge the answers and write the results; see `evaluate_task`.

    Args:
        config: The options.
        model: Use this model instead of loading `config.model`, which then only names it.
        tokenizer: Its tokenizer; given exactly where `model` is.

    Returns:
        The summary that was written to `summary.json`.
    """
    return evaluate_task(MATH, config, model, tokenizer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a problem that the message explains, 130 after Ctrl-C."""
    return run_command_line(MATH, MathConfig, arguments)
