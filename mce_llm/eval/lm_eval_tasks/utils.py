"""What the task files refer to: the questions, their prompt, and the judgement of an answer.

lm-evaluation-harness loads this file by its path, so everything else is imported from the installed package.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from mce_llm.data import get_prompt
from mce_llm.eval.answers import judge
from mce_llm.eval.tasks import GSM8K, MATH, Task

PROMPT = get_prompt("metamath")


class SolutionTask(ConfigurableTask):
    """A task that generates until one of the prompt's stop strings."""

    def __init__(self, config: dict[str, Any]) -> None:
        settings = {key: value for key, value in config.items() if key != "class"}
        generation = {**settings["generation_kwargs"], "until": list(PROMPT.stop)}
        super().__init__(config={**settings, "generation_kwargs": generation})


def load_gsm8k(data: str = "gsm8k", split: str | None = None, **metadata: Any) -> dict[str, Dataset]:
    """Load questions whose answers are numbers.

    Args:
        data: A known data set, a hub id, or a file or directory (see `load_examples`).
        split: Its split; by default test, or the only one.
        metadata: What else the harness passes on, such as the version of the task; not used.

    Returns:
        The columns `question` and `answer`, as the only split, `test`.

    Raises:
        DataError: If the data cannot be read, or questions have no usable answer.
    """
    return {"test": GSM8K.load(data, split, None)}


def load_math(data: str = "math", split: str | None = None, **metadata: Any) -> dict[str, Dataset]:
    """Load questions whose answers are expressions; arguments, result and errors are those of `load_gsm8k`."""
    return {"test": MATH.load(data, split, None)}


def prompt_of(doc: dict[str, str]) -> str:
    """Return the text after which the model goes on."""
    return PROMPT.evaluation_prompt(doc["question"])


def judge_number(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """Judge one generation whose answer is a number: 1 or 0 for each metric of the task."""
    return _judge(doc["answer"], results[0], GSM8K)


def judge_expression(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """Judge one generation whose answer is an expression: 1 or 0 for each metric of the task."""
    return _judge(doc["answer"], results[0], MATH)


def _judge(gold: str, solution: str, task: Task) -> dict[str, float]:
    verdict = judge(solution, gold, task.style)
    return {
        "exact_match": float(verdict.correct),
        "fallback": float(verdict.answer.is_fallback),
        "no_answer": float(verdict.answer.is_missing),
    }
