"""Accuracy on solutions whose answers are expressions, as a Hugging Face `evaluate` metric.

`evaluate.load(".../eval/metrics/math_accuracy")` copies this one file into a cache and imports it there, so
what it needs is imported from the installed package.
"""

from typing import Any

import datasets
import evaluate

from mce_llm.eval.metric import score_solutions

_DESCRIPTION = """Share of worked solutions whose final answer means the same as the reference, with Wilson's 95 %
interval. The answer is read from `\\boxed{X}`, `The answer is: X`, `#### X`, `A: X` or bold; failing these it is the
last formula or number, and these fall-backs are counted. Expressions are compared symbolically, numbers exactly."""

_KWARGS_DESCRIPTION = """
Args:
    predictions: Solutions, as texts.
    references: Reference answers such as "\\\\frac{1}{2}", or solutions with their answer in a box.
Returns:
    accuracy, correct, n, interval_low, interval_high, fallback (answers found without a marker),
    no_answer (texts without an answer), still_thinking (texts that end inside reasoning).
"""


class MathAccuracy(evaluate.Metric):
    """Accuracy of expressions with its interval."""

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
        return score_solutions(predictions, references, style="math")
