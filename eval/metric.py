"""The Hugging Face `evaluate` metrics that come with this package, found by their own path."""

from __future__ import annotations

from pathlib import Path

from evaluate import EvaluationModule, load

from mce_llm.eval.errors import EvaluationError
from mce_llm.messages import nearest_hint

METRICS_FOLDER = Path(__file__).resolve().parent / "metrics"
METRIC_NAMES = tuple(
    sorted(path.name for path in METRICS_FOLDER.iterdir() if (path / f"{path.name}.py").is_file())
)
"""The metrics there are: `gsm8k_accuracy` and `math_accuracy`."""


def load_metric(name: str = "gsm8k_accuracy") -> EvaluationModule:
    """Load one of this package's metrics; works offline.

    `load_metric().compute(predictions=[...], references=[...])` takes solutions and reference answers and
    gives accuracy, interval and fall-backs, judged as `eval/gsm8k.py` and `eval/math.py` do.

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
