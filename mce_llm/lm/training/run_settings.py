"""The settings that a run was trained with, step by step, as they are kept inside each of its checkpoints.

`recipe.yaml` in the folder of a run says what was asked for last; the file here says what the weights beside it were
made with, and so what a run that goes on from them is compared with (`resuming`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mce_llm.running.files import write_json

FILE = "run_settings.json"
Differences = dict[str, tuple[Any, Any]]  # name → (before, now)


@dataclass(frozen=True)
class Change:
    """Settings that changed where a run was started again.

    Attributes:
        after_step: The last step with the earlier values.
        differences: What changed.
    """

    after_step: int
    differences: Differences


@dataclass(frozen=True)
class RunSettings:
    """What a run was trained with.

    Attributes:
        settings: Every setting by name, as JSON holds it; without access tokens.
        changes: Those that had other values before, the earliest change first.
    """

    settings: dict[str, Any]
    changes: tuple[Change, ...] = ()

    def gone_on_with(
        self, settings: Mapping[str, Any], differences: Differences, after_step: int
    ) -> RunSettings:
        """The record of a run that goes on with other settings.

        Args:
            settings: All settings from now on.
            differences: Those among them that change what is trained.
            after_step: The step that the checkpoint was saved at.
        """
        added = (Change(after_step, dict(differences)),) if differences else ()
        return replace(self, settings=dict(settings), changes=self.changes + added)

    def history(self) -> list[str]:
        """One sentence for each change, the earliest first."""
        begin, lines = 1, []
        for change in self.changes:
            earlier = ", ".join(
                f"{name} {shown(before)} (then {shown(now)})"
                for name, (before, now) in change.differences.items()
            )
            steps = f"steps {begin}–{change.after_step}" if change.after_step >= begin else "no step"
            lines.append(f"{steps}: {earlier}")
            begin = change.after_step + 1
        return lines

    def write(self, checkpoint: Path) -> None:
        """Leave the record in the folder of a checkpoint."""
        changes = [
            {"after_step": change.after_step, "differences": change.differences} for change in self.changes
        ]
        write_json(checkpoint / FILE, {"settings": self.settings, "changes": changes})

    @classmethod
    def read(cls, checkpoint: Path) -> RunSettings | None:
        """The record in a checkpoint; None where it has none that can be read."""
        try:
            found = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
            changes = tuple(
                Change(
                    int(entry["after_step"]),
                    {name: (before, now) for name, (before, now) in entry["differences"].items()},
                )
                for entry in found["changes"]
            )
            return cls(dict(found["settings"]), changes)
        except (OSError, ValueError, TypeError, KeyError):
            return None


def shown(value: Any) -> str:
    """A value as messages and cards show it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON, so that they compare with those of a checkpoint; without access tokens."""
    kept = {name: value for name, value in settings.items() if not name.endswith("_token")}
    return dict(json.loads(json.dumps(kept, default=str)))
