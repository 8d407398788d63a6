"""The folder of a run: may it be written, which checkpoint to go on from, and the record that is left in it."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mce_llm.configuration import without_secrets
from mce_llm.lm.training.checkpoints import CheckpointError, list_checkpoints, newest_whole, remove_if_there
from mce_llm.lm.training.manifest import flush_directory
from mce_llm.processes import gather, say

_PACKAGES = ("mce-llm", "torch", "transformers", "accelerate", "peft", "datasets")
_FINISHED = ("train_results.json", "model.safetensors", "merged")
# There from before the first step until everything is saved: what is beside it is no result, whatever its name. What
# begins with an underscore is not pushed to the hub.
_UNFINISHED = "_UNFINISHED"
_PLACE_ONLY = ("output_dir", "resume", "overwrite")  # settings that do not change the outcome


class OutputError(RuntimeError):
    """The output folder or the checkpoints in it cannot be used; the message says what to do."""


def prepare_output(
    output: Path, given: Mapping[str, Any], *, resume: bool, overwrite: bool, engine: str = "plain"
) -> tuple[str | None, list[Path]]:
    """Make the output folder, choose the checkpoint in it to go on from, and see what is in the way.

    Args:
        output: The folder.
        given: The settings of this run; what differs from those of the checkpoint is said.
        resume: Look for a checkpoint.
        overwrite: Where a run starts anew, accept a folder with results or checkpoints.
        engine: What shards the training, as `checkpoints.engine_of` says.

    Returns:
        The newest whole checkpoint, or None to start from the beginning, the same in every process; and what
        `remove_earlier` has to remove before training starts.

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
    finished, checkpoints = gather(
        (finished_results(output), [folder for _, folder in list_checkpoints(output)])
    )[0]
    # Results go last: a removal that is interrupted leaves a finished run still, and no checkpoint of it to go on from.
    stale = [*checkpoints, *finished]
    if finished or (stale and not resume):
        if not overwrite:
            raise OutputError(
                f"output_dir {str(output)!r} holds {'a finished run' if finished else 'checkpoints'} "
                f"({', '.join(path.name for path in [*finished, *checkpoints])}); choose another output_dir, or remove them with "
                "--overwrite true"
            )
        return None, stale
    try:
        checkpoint, torn = newest_whole(output, engine=engine)
    except CheckpointError as error:
        raise OutputError(str(error)) from error
    if checkpoint is None:
        if torn:
            say("training starts from the beginning: it was interrupted before its first whole checkpoint")
        return None, torn
    if not any([*checkpoint.glob("optimizer*"), *checkpoint.glob("global_step*")]):
        raise OutputError(
            f"{checkpoint} holds weights without the optimizer's state (save_only_model), so training cannot go on from "
            "it; start anew with --resume false, or fine-tune its weights into another output_dir"
        )
    say(f"resuming from {checkpoint}")
    if changed := _changed_settings(output, given):
        say(f"settings that differ from those it was trained with: {changed}")
    return str(checkpoint), torn


def remove_earlier(stale: list[Path]) -> None:
    """Remove results and checkpoints of an earlier run, so that a later resume cannot take them for this one's."""
    for path in stale:
        say(f"removing {path}")
        if path.is_dir():
            remove_if_there(path)
        else:
            path.unlink()


def write_record(output: Path, given: Mapping[str, Any]) -> None:
    """Leave beside the weights what is needed to run the same again, recipe.yaml and versions.json; the run begins."""
    (output / _UNFINISHED).write_text(
        "This run is not finished; the same command goes on.\n", encoding="utf-8"
    )
    text = yaml.safe_dump(without_secrets(given), sort_keys=False, allow_unicode=True)
    (output / "recipe.yaml").write_text(text, encoding="utf-8")
    versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    (output / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")


def mark_finished(output: Path) -> None:
    """Have the results on disk, and from now on take them for what they are."""
    for path in output.iterdir():
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    flush_directory(output)
    (output / _UNFINISHED).unlink()
    flush_directory(output)


def finished_results(output: Path) -> list[Path]:
    """The results of a finished run that a folder holds; empty where there are none."""
    if (output / _UNFINISHED).exists():
        return []
    return [output / name for name in _FINISHED if (output / name).exists()]


def _changed_settings(output: Path, given: Mapping[str, Any]) -> str:
    given = without_secrets(given)
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
