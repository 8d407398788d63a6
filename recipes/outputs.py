"""The folder of a run: may it be written, which checkpoint to go on from, and the record that is left in it."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mce_llm.processes import say

_PACKAGES = ("mce-llm", "torch", "transformers", "accelerate", "peft", "datasets")
_FINISHED = ("train_results.json", "model.safetensors")
_PLACE_ONLY = ("output_dir", "resume", "overwrite")  # settings that do not change the outcome


class OutputError(RuntimeError):
    """The output folder or the checkpoints in it cannot be used; the message says what to do."""


def prepare_output(
    output: Path, given: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> tuple[str | None, list[Path]]:
    """Make the output folder, choose the checkpoint in it to go on from, and see what is in the way.

    Args:
        output: The folder.
        given: The settings of this run; what differs from those of the checkpoint is said.
        resume: Look for a checkpoint.
        overwrite: Where a run starts anew, accept a folder with results or checkpoints.

    Returns:
        The newest complete checkpoint, or None to start from the beginning; and what `remove_earlier` has to remove
        before training starts.

    Raises:
        OutputError: The folder cannot be written, holds a finished run, or only checkpoints to no use.
    """
    try:
        if output.exists() and not output.is_dir():
            raise OutputError(f"output_dir {str(output)!r} is a file; name a directory")
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to output_dir {str(output)!r}: {error.strerror or error}") from error
    finished = [output / name for name in _FINISHED if (output / name).exists()]
    stale = [*finished, *(folder for _, folder in _checkpoints(output))]
    if finished or (stale and not resume):
        if not overwrite:
            raise OutputError(
                f"output_dir {str(output)!r} holds {'a finished run' if finished else 'checkpoints'} "
                f"({', '.join(path.name for path in stale)}); choose another output_dir, or remove them with "
                "--overwrite true"
            )
        return None, stale
    checkpoint = _newest_checkpoint(output)
    if checkpoint is None:
        return None, []
    say(f"resuming from {checkpoint}")
    if changed := _changed_settings(output, given):
        say(f"settings that differ from those it was trained with: {changed}")
    return str(checkpoint), []


def remove_earlier(stale: list[Path]) -> None:
    """Remove results and checkpoints of an earlier run, so that a later resume cannot take them for this one's."""
    for path in stale:
        say(f"removing {path}")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_record(output: Path, given: Mapping[str, Any]) -> None:
    """Leave beside the weights what is needed to run the same again: recipe.yaml and versions.json."""
    text = yaml.safe_dump(dict(given), sort_keys=False, allow_unicode=True)
    (output / "recipe.yaml").write_text(text, encoding="utf-8")
    versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    (output / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")


def _checkpoints(output: Path) -> list[tuple[int, Path]]:
    """The checkpoint folders with their steps."""
    return [
        (int(step), folder)
        for folder in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (step := folder.name.rpartition("-")[2]).isdecimal() and folder.is_dir()
    ]


def _newest_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that was written to its end: trainer_state.json is what comes last."""
    found = _checkpoints(output)
    for _, folder in sorted(found, reverse=True):
        if not (folder / "trainer_state.json").is_file():
            say(f"{folder} is incomplete (it has no trainer_state.json, which is written last): not used")
        elif not any([*folder.glob("optimizer*"), *folder.glob("global_step*")]):
            raise OutputError(
                f"{folder} holds weights without the optimizer's state (save_only_model), so training cannot go on from "
                "it; start anew with --resume false, or fine-tune its weights into another output_dir"
            )
        else:
            return folder
    if found:
        raise OutputError(
            f"none of the {len(found)} checkpoints in {output} is complete; remove them, or start anew with "
            "--resume false"
        )
    return None


def _changed_settings(output: Path, given: Mapping[str, Any]) -> str:
    try:
        before = yaml.safe_load((output / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return "unknown, recipe.yaml cannot be read"
    names = dict.fromkeys([*before, *given])
    return ", ".join(
        f"{name} {before.get(name)!r} → {given.get(name)!r}"
        for name in names
        if name not in _PLACE_ONLY and before.get(name) != given.get(name)
    )
