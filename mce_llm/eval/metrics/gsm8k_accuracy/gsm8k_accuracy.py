"""Accuracy on worked solutions as a Hugging Face `evaluate` metric.

`evaluate.load(".../eval/metrics/gsm8k_accuracy")` copies this one file into a cache and imports it there, so
what it needs is imported from the installed package.
"""

from typing import Any

import datasets
import evaluate

from mce_llm.eval.metric import score_solutions

_DESCRIPTION = """Share of worked solutions whose final answer equals the reference exactly, with Wilson's
95 % interval. The answer is read from `#### X`, `The answer is: X`, `\\boxed{X}`, `A: X` or bold; failing
these it is the last number, and these fall-backs are counted."""

_KWARGS_DESCRIPTION = """
Args:
    predictions: Solutions, as texts.
    references: Reference answers such as "1,234" or "... #### 1,234".
Returns:
    accuracy, correct, n, interval_low, interval_high, fallback (answers found without a marker),
    no_answer (texts without a number), still_thinking (texts that end inside reasoning).
"""


class Gsm8kAccuracy(evaluate.Metric):
    """Exact-answer accuracy with its interval."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        return score_solutions(predictions, references)
