"""Evaluation: the answers of worked solutions, and the accuracy of language models on them.

Names are imported when they are first asked for, so that judging answers needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mce_llm.eval.answers import Answer, GoldAnswerError, extract_answer, gold_value, is_correct
    from mce_llm.eval.errors import EvaluationError, GenerationError
    from mce_llm.eval.generation import Generation, generate_greedy
    from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k
    from mce_llm.eval.intervals import Interval, IntervalError, wilson_interval
    from mce_llm.eval.metric import load_metric
    from mce_llm.eval.results import Summary

_HOMES = {
    "Answer": "answers",
    "EvaluationError": "errors",
    "Generation": "generation",
    "GenerationError": "errors",
    "GoldAnswerError": "answers",
    "Gsm8kConfig": "gsm8k",
    "Interval": "intervals",
    "IntervalError": "intervals",
    "Summary": "results",
    "evaluate_gsm8k": "gsm8k",
    "extract_answer": "answers",
    "generate_greedy": "generation",
    "gold_value": "answers",
    "is_correct": "answers",
    "load_metric": "metric",
    "wilson_interval": "intervals",
}

__all__ = [
    "Answer",
    "EvaluationError",
    "Generation",
    "GenerationError",
    "GoldAnswerError",
    "Gsm8kConfig",
    "Interval",
    "IntervalError",
    "Summary",
    "evaluate_gsm8k",
    "extract_answer",
    "generate_greedy",
    "gold_value",
    "is_correct",
    "load_metric",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
