"""In what the trainings behind the runs of a section differ, as rows of text for the page."""

from __future__ import annotations

from typing import Any

from mce_llm.eval.comparing.training_differences import TrainingOverview
from mce_llm.eval.reporting.looks import printable


def trainings_table(overview: TrainingOverview) -> dict[str, Any] | None:
    """Say in what the trainings of some runs differ: a row a setting, a column a run.

    Args:
        overview: What is known of them.

    Returns:
        The rows; None where there is nothing to say.
    """
    if len(overview.runs) < 2 and overview.missing is None:
        return None
    return {
        "missing": overview.missing and printable(overview.missing),
        "runs": [printable(label) for label in overview.runs],
        "rows": [
            {
                "name": printable(setting.name),
                "kind": {"other": "beside the method"}.get(setting.kind, setting.kind),
                "warns": setting.kind == "other",
                "values": [printable(value) for value in setting.values],
            }
            for setting in overview.settings
        ],
    }
