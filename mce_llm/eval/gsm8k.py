"""Accuracy on GSM8K and on data like it: `accelerate launch eval/gsm8k.py --model MODEL --output DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mce_llm.eval.evaluation import evaluate_task, run_command_line
from mce_llm.eval.results import Summary
from mce_llm.eval.settings import EvaluationConfig
from mce_llm.eval.tasks import GSM8K


@dataclass(frozen=True)
class Gsm8kConfig(EvaluationConfig):
    """The options of an evaluation on GSM8K; each is a command-line option of the same name."""


def evaluate_gsm8k(
    config: Gsm8kConfig, model: Any = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Summary:
    """Answer every question with a number, judge the answers and write the results; see `evaluate_task`.

    Args:
        config: The options.
        model: Use this model instead of loading `config.model`, which then only names it.
        tokenizer: Its tokenizer; given exactly where `model` is.

    Returns:
        The summary that was written to `summary.json`.
    """
    return evaluate_task(GSM8K, config, model, tokenizer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a problem that the message explains, 130 after Ctrl-C."""
    return run_command_line(GSM8K, Gsm8kConfig, arguments)
