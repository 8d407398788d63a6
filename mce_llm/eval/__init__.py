"""Evaluation: the answers of worked solutions, and the accuracy of language models on them.

Names are imported when they are first asked for, so that judging answers needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mce_llm.eval.answers import Answer, GoldAnswerError, extract_answer, gold_value, is_correct
    from mce_llm.eval.comparing.comparison import Comparison, compare_runs
    from mce_llm.eval.engines.decoding import Decoding, Generation
    from mce_llm.eval.engines.generation import generate
    from mce_llm.eval.errors import EvaluationError, GenerationError
    from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k
    from mce_llm.eval.intervals import Interval, IntervalError, wilson_interval
    from mce_llm.eval.math import MathConfig, evaluate_math
    from mce_llm.eval.metric import load_metric
    from mce_llm.eval.results import Summary
    from mce_llm.eval.saved_runs import SavedRun
    from mce_llm.eval.votes import pass_at_k

_HOMES = {
    "Answer": "answers",
    "Comparison": "comparing.comparison",
    "Decoding": "engines.decoding",
    "EvaluationError": "errors",
    "Generation": "engines.decoding",
    "GenerationError": "errors",
    "GoldAnswerError": "answers",
    "Gsm8kConfig": "gsm8k",
    "Interval": "intervals",
    "IntervalError": "intervals",
    "MathConfig": "math",
    "SavedRun": "saved_runs",
    "Summary": "results",
    "compare_runs": "comparing.comparison",
    "evaluate_gsm8k": "gsm8k",
    "evaluate_math": "math",
    "extract_answer": "answers",
    "generate": "engines.generation",
    "gold_value": "answers",
    "is_correct": "answers",
    "load_metric": "metric",
    "pass_at_k": "votes",
    "wilson_interval": "intervals",
}

__all__ = [
    "Answer",
    "Comparison",
    "Decoding",
    "EvaluationError",
    "Generation",
    "GenerationError",
    "GoldAnswerError",
    "Gsm8kConfig",
    "Interval",
    "IntervalError",
    "MathConfig",
    "SavedRun",
    "Summary",
    "compare_runs",
    "evaluate_gsm8k",
    "evaluate_math",
    "extract_answer",
    "generate",
    "gold_value",
    "is_correct",
    "load_metric",
    "pass_at_k",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
