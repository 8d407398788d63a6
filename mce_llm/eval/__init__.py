"""Evaluation: the answers of worked solutions, the accuracy of language models on them, and the likelihood of theirs.

Names are imported when they are first asked for, so that judging answers needs neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mce_llm.running.lazy_names import lazy_names

if TYPE_CHECKING:
    from mce_llm.eval.answers import Answer, GoldAnswerError, extract_answer, gold_value, is_correct
    from mce_llm.eval.comparing.comparison import Comparison, compare_runs
    from mce_llm.eval.engines.decoding import Decoding
    from mce_llm.eval.engines.generation import generate
    from mce_llm.eval.errors import EvaluationError, GenerationError
    from mce_llm.eval.gsm8k import Gsm8kConfig, evaluate_gsm8k
    from mce_llm.eval.intervals import Interval, IntervalError, wilson_interval
    from mce_llm.eval.items import Generation
    from mce_llm.eval.likelihood.evaluation import evaluate_likelihood
    from mce_llm.eval.likelihood.saved import SavedLikelihood
    from mce_llm.eval.likelihood.settings import LikelihoodConfig
    from mce_llm.eval.likelihood.summary import LikelihoodSummary
    from mce_llm.eval.math import MathConfig, evaluate_math
    from mce_llm.eval.metric import load_metric
    from mce_llm.eval.results import Summary
    from mce_llm.eval.saved_runs import SavedRun
    from mce_llm.eval.votes import pass_at_k

_MODULES = {
    "Answer": "answers",
    "Comparison": "comparing.comparison",
    "Decoding": "engines.decoding",
    "EvaluationError": "errors",
    "Generation": "items",
    "GenerationError": "errors",
    "GoldAnswerError": "answers",
    "Gsm8kConfig": "gsm8k",
    "Interval": "intervals",
    "IntervalError": "intervals",
    "LikelihoodConfig": "likelihood.settings",
    "LikelihoodSummary": "likelihood.summary",
    "MathConfig": "math",
    "SavedLikelihood": "likelihood.saved",
    "SavedRun": "saved_runs",
    "Summary": "results",
    "compare_runs": "comparing.comparison",
    "evaluate_gsm8k": "gsm8k",
    "evaluate_likelihood": "likelihood.evaluation",
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
    "LikelihoodConfig",
    "LikelihoodSummary",
    "MathConfig",
    "SavedLikelihood",
    "SavedRun",
    "Summary",
    "compare_runs",
    "evaluate_gsm8k",
    "evaluate_likelihood",
    "evaluate_math",
    "extract_answer",
    "generate",
    "gold_value",
    "is_correct",
    "load_metric",
    "pass_at_k",
    "wilson_interval",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
