"""Save checkpoints atomically with all processes, and choose a complete ("whole") one.

A save takes these steps: the folder is made with a marker of incomplete checkpoints in it; every process writes its
files, and the main one the model card and the settings of the run; they are flushed to disk; the manifest is written
(see `manifest`); the marker is removed; older checkpoints are deleted. A kill at any moment therefore leaves a whole
checkpoint, if there was one before, also with `save_total_limit=1`. The trainer decides which files there are, so this holds for one process, DDP, DeepSpeed and FSDP,
on a shared file system and on local disks; with the latter every machine has a manifest of the files that it holds.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mce_llm.lm.training import manifest
from mce_llm.lm.training.model_card import write_model_card
from mce_llm.running.folder import CheckpointError
from mce_llm.running.messages import cause
from mce_llm.running.processes import gather, say

_Result = TypeVar("_Result")


def list_checkpoints(output: Path) -> list[tuple[int, Path]]:
    """The checkpoint folders of a run with their steps, the newest first, whole or not."""
    found = [
        (int(step), folder)
        for folder in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (step := folder.name.rpartition("-")[2]).isdecimal() and folder.is_dir()
    ]
    return sorted(found, reverse=True)


def engine_of(args: Any) -> str:
    """The engine that shards model and optimizer, as far as the format of a checkpoint depends on it.

    Args:
        args: `TrainingArguments`.

    Returns:
        `plain` (one process, or DDP), `deepspeed zero 2`, `fsdp`, …
    """
    if (plugin := getattr(args, "deepspeed_plugin", None)) is not None:
        return f"deepspeed zero {plugin.zero_stage}"
    # `accelerate launch` asks for FSDP in the environment, and the arguments know nothing of it.
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return "fsdp" if launched or getattr(args, "fsdp", None) else "plain"


def save_whole(trainer: Any, trial: Any, write: Callable[[], None]) -> None:
    """Save a checkpoint atomically, then delete older ones beyond `save_total_limit`.

    Args:
        trainer: The trainer; its attribute `_whole_checkpoint` is set to the new checkpoint.
        trial: The trial of a hyperparameter search, or None.
        write: The stock trainer's writing of the files.

    Raises:
        OSError: The disk is full, or a file cannot be read back; on all processes.
    """
    args, output = trainer.args, Path(trainer._get_output_dir(trial))
    folder = output / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    if getattr(trainer, "_whole_checkpoint", None) == folder:
        return  # nothing has been trained since, and writing would put the newest checkpoint at risk
    _begin(folder)
    # The stock trainer would delete and push before the checkpoint is complete.
    limit, push, args.save_total_limit, args.push_to_hub = (
        args.save_total_limit,
        args.push_to_hub,
        None,
        False,
    )
    try:
        write()
    finally:
        args.save_total_limit, args.push_to_hub = limit, push
    _together(lambda: _describe(trainer, folder))
    facts = {
        "step": trainer.state.global_step,
        "world_size": args.world_size,
        "engine": engine_of(args),
    }
    owned = _finish(folder, facts)
    trainer._whole_checkpoint = folder
    if push:
        trainer._push_from_checkpoint(str(folder))
    if owned:
        best = trainer.state.best_model_checkpoint
        rotate(output, limit, {folder} if best is None else {folder, Path(best)})


def rotate(output: Path, limit: int | None, keep: set[Path]) -> None:
    """Delete the oldest whole checkpoints.

    Args:
        output: The folder they are in.
        limit: How many may stay; None or 0 for all.
        keep: Checkpoints that stay whatever the limit: the newest, and the best.
    """
    if not limit or limit < 0:
        return
    whole = [
        (float(facts.get("saved", 0)), folder)
        for _, folder in list_checkpoints(output)
        if (facts := manifest.read_manifest(folder))
    ]
    kept = {folder.resolve() for folder in keep}
    removable = [folder for _, folder in sorted(whole) if folder.resolve() not in kept]
    excess = len(whole) - max(limit, len(whole) - len(removable))
    for folder in removable[:excess]:
        manifest.remove(folder)


def newest_whole(output: Path, *, engine: str) -> tuple[Path | None, list[Path]]:
    """Choose the checkpoint to resume from; the same on every process.

    Args:
        output: The folder of the run.
        engine: The engine of this launch (`engine_of`).

    Returns:
        The newest whole checkpoint, or None before the first save; and the folders to delete: incomplete checkpoints
        after it, and folders that were being made or deleted when a process was killed.

    Raises:
        CheckpointError: There are checkpoints, but none to resume from.
    """
    found = gather(list_checkpoints(output))[0]
    torn: dict[Path, str] = {}
    for _, folder in found:
        problem = _shared_problem(folder)
        if problem is None:
            _check_fits(folder, engine)
            return folder, [*torn, *manifest.leftovers(output)]
        say(f"{folder} is not whole, so it is skipped: {problem}")
        torn[folder] = problem
    # Where only the first save was interrupted, nothing is lost. Damaged and unknown folders are an error.
    if any(gather([folder.is_dir() and not _interrupted(folder) for folder in torn])[0]):
        listed = "".join(f"\n  {folder.name}: {problem}" for folder, problem in torn.items())
        raise CheckpointError(
            f"none of the {len(torn)} checkpoints in {output} is whole:{listed}\nremove them, or start anew with --resume "
            "false --overwrite true"
        )
    return None, [*torn, *manifest.leftovers(output)]


def remove_if_there(folder: Path) -> None:
    """Delete a folder, unless another process has deleted it meanwhile."""
    with suppress(FileNotFoundError):
        manifest.remove(folder)


def _describe(trainer: Any, folder: Path) -> None:
    """Leave beside the weights what they were trained with, on the main process: the model card and all settings."""
    write_model_card(trainer, folder, **(trainer._stated or {}))
    if PartialState().is_main_process and trainer.run_settings is not None:
        trainer.run_settings.write(folder)


def _begin(folder: Path) -> None:
    """Make the folder on the main process, then on every machine whose file system does not have it."""
    state = PartialState()
    save = gather(uuid.uuid4().hex)[0]

    def make() -> None:
        marker = manifest.marker_of(folder)
        if marker is not None and marker.get("save") == save:
            return
        if folder.exists():
            remove_if_there(folder)
        manifest.create(folder, {"save": save, "owner": state.process_index})

    _together(lambda: make() if state.is_main_process else None)
    _together(lambda: make() if state.is_local_main_process else None)


def _finish(folder: Path, facts: dict[str, Any]) -> bool:
    """Flush everything to disk, then write the manifests; True on a process that wrote one."""
    state = PartialState()
    # A process may be seen by others to have written only when its data has left its machine.
    _together(lambda: manifest.flush(folder) if state.is_local_main_process else None)
    marker = manifest.marker_of(folder) or {}
    owned = marker.get("owner") == state.process_index
    _together(lambda: manifest.write_manifest(folder, {**facts, **marker}) if owned else None)
    return owned


def _together(work: Callable[[], _Result]) -> None:
    """Do something on every process; where it fails on one it fails on all, so that none waits for ever."""
    own: OSError | None = None
    try:
        work()
    except OSError as error:
        own = error
    problems = [problem for problem in gather(None if own is None else cause(own)) if problem]
    if own is not None:
        raise own
    if problems:
        raise OSError(f"another process could not save: {problems[0]}")


def _shared_problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint on any machine; each manifest is checked by one process that sees it."""
    state = PartialState()
    seen = manifest.read_manifest(folder)
    views = gather(None if not folder.is_dir() else (seen or {}).get("owner", "?"))
    if None in views:
        raise CheckpointError(
            f"{folder} is there for process {next(i for i, view in enumerate(views) if view is not None)}, and not for "
            f"process {views.index(None)}: output_dir must be on a file system that all machines share, or, with "
            "save_on_each_node, must hold on each machine what was saved there"
        )
    saves = {save for save in gather((seen or {}).get("save")) if save is not None}
    mine = views.index(views[state.process_index]) == state.process_index
    problem = manifest.problem_of(folder) if mine else None
    found = [text for text in gather(problem) if text]
    if not found and len(saves) > 1:
        found.append("its parts on the machines are not of one save")
    return found[0] if found else None


def _interrupted(folder: Path) -> bool:
    return not (folder / manifest.MANIFEST).exists() and (folder / manifest.INCOMPLETE).exists()


def _check_fits(folder: Path, engine: str) -> None:
    """Raise where the shards of a checkpoint are not those that this launch would read."""
    facts = manifest.read_manifest(folder) or {}
    now, then = PartialState().num_processes, facts.get("world_size")
    before = facts.get("engine")
    if before is None:  # its manifest is by `vouch`: the file names tell
        shards = len(list(folder.glob("global_step*/*_optim_states.pt")))
        kind = "deepspeed" if shards else "fsdp" if any(folder.glob("pytorch_model_fsdp*")) else "plain"
        then, before = shards or None, engine if engine.startswith(kind) else kind
    if before != engine:
        raise CheckpointError(
            f"{folder} was saved by {before!r}, and this launch is {engine!r}, which would not read its optimizer's state; "
            "launch as before, or fine-tune its weights into another output_dir"
        )
    if then is None or then == now:
        return
    if engine.startswith("deepspeed"):
        raise CheckpointError(
            f"{folder} holds the optimizer's state in {then} shards, one a process, and this launch has {now} processes; "
            f"launch with --num_processes {then}, or convert it with DeepSpeed's universal checkpoints"
        )
    say(
        f"{folder} was saved by {then} processes, and this launch has {now}: training goes on, with other random "
        "numbers and another order of the data than without the interruption"
    )
