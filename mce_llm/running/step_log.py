"""A file with a line of JSON for each measurement of a run, in the order of its steps.

A run that goes on from a checkpoint takes back what was written after it, so the file is that of one undisturbed run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mce_llm.running.files import write_text


class StepLog:
    """Lines `{"step": n, …}` in one file; to be used by one process.

    Args:
        path: The file; its folder is made when there is something to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop the lines of steps beyond `step`, and a last line that was torn."""
        if not self.path.is_file():
            return
        kept = [
            line
            for line in self.path.read_text(encoding="utf-8").splitlines()
            if (found := _step_of(line)) is not None and found <= step
        ]
        if not kept:
            self.path.unlink()
            return
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def append(self, step: int, record: dict[str, Any]) -> None:
        """Add one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}, ensure_ascii=False) + "\n")


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
