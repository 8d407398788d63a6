"""Where generation stops, as a configuration says it: no id, one, or several."""

from __future__ import annotations

from typing import Any


def stop_ids(settings: Any) -> list[int]:
    """Return the ids at which generation stops.

    Args:
        settings: A `GenerationConfig`, or a model's configuration; None stops nowhere.
    """
    ids = getattr(settings, "eos_token_id", None)
    if ids is None:
        return []
    return [int(token) for token in ids] if isinstance(ids, (list, tuple)) else [int(ids)]
