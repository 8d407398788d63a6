"""The Hugging Face `evaluate` metrics that come with this package, found by their own path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluate import EvaluationModule, load

from mce_llm.eval.answers import judge
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.intervals import wilson_interval
from mce_llm.running.messages import nearest_hint

METRICS_FOLDER = Path(__file__).resolve().parent / "metrics"
METRIC_NAMES = tuple(
    sorted(path.name for path in METRICS_FOLDER.iterdir() if (path / f"{path.name}.py").is_file())
)
"""The metrics there are: `gsm8k_accuracy` and `math_accuracy`."""


def load_metric(name: str = "gsm8k_accuracy") -> EvaluationModule:
    """Load one of this package's metrics; works offline.

    `load_metric().compute(predictions=[...], references=[...])` takes solutions and reference answers and
    gives accuracy, interval and fall-backs, judged as `eval/gsm8k.py` and `eval/hendrycks_math.py` do.

    Args:
        name: `gsm8k_accuracy` for answers that are numbers, `math_accuracy` for expressions.

    Returns:
        The metric.

    Raises:
        EvaluationError: There is none of that name.
    """
    if name not in METRIC_NAMES:
        raise EvaluationError(
            f"unknown metric {name!r}{nearest_hint(name, METRIC_NAMES)}; choose one of {', '.join(METRIC_NAMES)}"
        )
    return load(str(METRICS_FOLDER / name))


def score_solutions(
    predictions: Sequence[str], references: Sequence[str], style: str | None = None
) -> dict[str, Any]:
    """Judge solutions; what the metrics compute.

    Args:
        predictions: Solutions, as texts; one at least.
        references: Reference answers.
        style: As for `extract_answer`.

    Returns:
        accuracy, correct, n, interval_low and interval_high (Wilson, 95 %), fallback, no_answer, still_thinking.
    """
    verdicts = [judge(*pair, style) for pair in zip(predictions, references, strict=True)]
    n, correct = len(verdicts), sum(verdict.correct for verdict in verdicts)
    interval = wilson_interval(correct, n)
    return {
        "accuracy": correct / n,
        "correct": correct,
        "n": n,
        "interval_low": interval.low,
        "interval_high": interval.high,
        "fallback": sum(verdict.answer.is_fallback for verdict in verdicts),
        "no_answer": sum(verdict.answer.is_missing for verdict in verdicts),
        "still_thinking": sum(verdict.answer.is_unfinished for verdict in verdicts),
    }
