"""What a study declares before its first result, since a choice made after it would decide what is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mce_llm.studies.definition import Study


def declared(study: Study) -> dict[str, Any]:
    """Baseline, confidence, primary measure and contrasts, as JSON holds them.

    Args:
        study: The study.
    """
    return {
        "baseline": study.baseline.name,
        "confidence": study.confidence,
        "primary": dict(vars(study.primary)),
        "contrasts": [dict(vars(contrast)) for contrast in study.contrasts],
    }


def declared_otherwise(before: Mapping[str, Any], study: Study) -> list[str]:
    """What is declared now and was declared otherwise, in words.

    Args:
        before: What `declared` gave then; what is not in it is not compared.
        study: The study as it is now.
    """
    now = declared(study)
    return [
        f"{name}: {before[name]!r} → {now[name]!r}"
        for name in now
        if name in before and before[name] != now[name]
    ]
