"""The folder of a run: may it be written, which checkpoint to go on from, and the record that is left in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mce_llm.finetuning.configuration import Recipe
from mce_llm.finetuning.resuming import going_on
from mce_llm.lm import MatrixTrainer
from mce_llm.lm.training.checkpoints import list_checkpoints, newest_whole, remove_if_there
from mce_llm.lm.training.resuming import Continuation
from mce_llm.running.files import flush_folder
from mce_llm.running.folder import (
    CheckpointError,
    OutputError,
    hold_folder,
    make_folder,
    release_folder,
    write_record,
)
from mce_llm.running.processes import gather, say, shared

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets")
_FINISHED = ("train_results.json", "model.safetensors", "merged")
# There from before the first step until everything is saved: what is beside it is no result, whatever its name. What
# begins with an underscore is not pushed to the hub.
_UNFINISHED = "_UNFINISHED"


def prepare_output(
    output: Path, *, resume: bool, overwrite: bool, engine: str = "plain"
) -> tuple[str | None, list[Path]]:
    """Make the output folder, choose the checkpoint in it to go on from, and see what is in the way.

    Args:
        output: The folder.
        resume: Look for a checkpoint.
        overwrite: Where a run starts anew, accept a folder with results or checkpoints.
        engine: What shards the training, as `checkpoints.engine_of` says.

    Returns:
        The newest whole checkpoint, or None to start from the beginning, the same in every process; and what
        `remove_earlier` has to remove before training starts.

    Raises:
        OutputError: The folder cannot be written, holds a finished run, or only checkpoints to no use.
    """
    make_folder(output)
    problem = None
    if PartialState().is_main_process:
        try:
            hold_folder(output)
        except OutputError as error:
            problem = error
    problem, finished, checkpoints = gather(
        (problem, finished_results(output), [folder for _, folder in list_checkpoints(output)])
    )[0]
    if problem is not None:
        raise shared(problem)
    try:
        return _start(output, finished, checkpoints, resume=resume, overwrite=overwrite, engine=engine)
    except OutputError as error:
        release_folder(output)
        raise shared(error) from error.__cause__


def _start(
    output: Path,
    finished: list[Path],
    checkpoints: list[Path],
    *,
    resume: bool,
    overwrite: bool,
    engine: str,
) -> tuple[str | None, list[Path]]:
    """The checkpoint to go on from and what is in the way, of a folder that this run holds."""
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
    return str(checkpoint), torn


def compared(checkpoint: str | None, recipe: Recipe) -> Continuation | None:
    """How the run goes on from its checkpoint with the settings of this start (`resuming.going_on`); None without one.

    Raises:
        CheckpointError: Settings differ that cannot change on the way.
    """
    if checkpoint is None:
        return None
    try:
        return going_on(Path(checkpoint), recipe)
    except CheckpointError:
        release_folder(Path(str(recipe.training.output_dir)))
        raise


class FolderCallback(TrainerCallback):
    """Removes what is in the way and leaves the record, once everything is loaded: a start that fails before changes nothing.

    Args:
        trainer: A `MatrixTrainer`.
        given: The settings of this run.
        stale: Results and checkpoints of an earlier run, and incomplete ones of this.
    """

    def __init__(self, trainer: MatrixTrainer, given: Mapping[str, Any], stale: Iterable[Path]) -> None:
        self._trainer, self._given, self._stale = trainer, given, stale

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On the main process alone."""
        if state.is_world_process_zero:
            remove_earlier(self._stale)
            record = self._trainer.run_settings
            begin_record(Path(str(args.output_dir)), self._given, () if record is None else record.history())


def remove_earlier(stale: Iterable[Path]) -> None:
    """Remove results and checkpoints of an earlier run, so that a later resume cannot take them for this one's."""
    for path in stale:
        say(f"removing {path}")
        if path.is_dir():
            remove_if_there(path)
        else:
            path.unlink()


def begin_record(output: Path, given: Mapping[str, Any], history: Iterable[str] = ()) -> None:
    """Leave beside the weights what is needed to run the same again; from now on the run is known as unfinished.

    Args:
        output: The folder.
        given: The settings.
        history: What was other in earlier steps of the run, a line a change.
    """
    (output / _UNFINISHED).write_text(
        "This run is not finished; the same command goes on.\n", encoding="utf-8"
    )
    write_record(output, given, _PACKAGES, remarks=history)


def mark_finished(output: Path) -> None:
    """Have the results on disk, and from now on take them for what they are."""
    for path in output.iterdir():
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    flush_folder(output)
    (output / _UNFINISHED).unlink()
    flush_folder(output)
    release_folder(output)


def finished_results(output: Path) -> list[Path]:
    """The results of a finished run that a folder holds; empty where there are none."""
    if (output / _UNFINISHED).exists():
        return []
    return [output / name for name in _FINISHED if (output / name).exists()]
