"""What error messages of several rooms have in common. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest_hint(name: str, options: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest option, or an empty string when none is close."""
    known = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {known[close[0]]!r}?)" if close else ""


def cause(error: BaseException) -> str:
    """Return type and text of another library's error on one line: of the innermost, where errors are chained."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:299] + '…'}".rstrip(":. ")


def model_path_problem(name: str) -> str | None:
    """Say why a name that looks like a path is no model to load, before anything looks for it on the hub.

    Args:
        name: A directory or a hub id.

    Returns:
        The problem, or None where loading may be tried.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return None
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:6]) or "nothing"
        return (
            f"{name} is not a model: it has no config.json (found: {inside}); give the directory that "
            "save_pretrained wrote, or a checkpoint-N inside it"
        )
    if path.exists():
        return f"{name} is a file; give the directory of a model, or a hub id"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"{name}: there is no such directory"
    return None
