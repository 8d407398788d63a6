"""The Hugging Face `evaluate` metric that comes with this package, found by its own path."""

from __future__ import annotations

from pathlib import Path

from evaluate import EvaluationModule, load

METRIC_PATH = Path(__file__).resolve().parent / "metrics" / "gsm8k_accuracy"


def load_metric() -> EvaluationModule:
    """Load the `gsm8k_accuracy` metric; works offline.

    `load_metric().compute(predictions=[...], references=[...])` takes solutions and reference answers and
    gives accuracy, interval and fall-backs.

    Returns:
        The metric.
    """
    return load(str(METRIC_PATH))
