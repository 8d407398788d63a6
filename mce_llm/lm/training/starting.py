"""How a training of `MatrixTrainer` starts: alone in its folder, from the beginning or from a checkpoint.

Until everything is loaded, nothing in the folder changes: a start that is refused, however late, leaves it as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from mce_llm.errors import MceLlmError
from mce_llm.lm.training.accumulation import keep_gradients_sharded
from mce_llm.lm.training.checkpoints import engine_of, newest_whole, remove_if_there
from mce_llm.lm.training.monitoring.trackers import same_curves
from mce_llm.lm.training.pickles import UnsafeCheckpointError, data_only, unsafe_file
from mce_llm.lm.training.resuming import Continuation, continuation, training_settings, unknown_before
from mce_llm.lm.training.run_settings import RunSettings
from mce_llm.running.folder import CheckpointError, OutputError, hold_folder, holds_folder, release_folder
from mce_llm.running.messages import cause
from mce_llm.running.processes import gather, say, shared


@contextmanager
def started(trainer: Any, checkpoint: str | bool | None, trial: Any) -> Iterator[str | None]:
    """Hold the folder, check a checkpoint before it is loaded, and load it without running code (`pickles.data_only`).

    Args:
        trainer: The trainer that is about to train.
        checkpoint: The folder; True for the newest whole one; None or False to start from the beginning.
        trial: The trial of a hyperparameter search, or None.

    Yields:
        The folder, or None.

    Raises:
        OutputError: Another process trains in the folder.
        CheckpointError: The checkpoint is not whole, or not for this run, or cannot be loaded into this run's model and
            optimizer.
        UnsafeCheckpointError: A file in it would run code.
    """
    output = Path(trainer._get_output_dir(trial))
    with ExitStack() as stack:
        if trainer.args.save_strategy != SaveStrategy.NO:
            stack.enter_context(_held(output))
        in_the_way: list[Path] = []
        if checkpoint is True:
            newest, in_the_way = newest_whole(output, engine=engine_of(trainer.args))
            if newest is None:
                raise CheckpointError(f"there is no whole checkpoint in {output}")
            checkpoint = str(newest)
        trainer.run_settings = None
        if not checkpoint:
            stack.enter_context(_watched(trainer, _Begin(trainer)))
            yield None
            return
        folder = Path(checkpoint)
        if not any(gather(folder.is_dir())):
            raise CheckpointError(f"resume_from_checkpoint: there is no directory {folder}")
        if unsafe := next(filter(None, gather(unsafe_file(folder))), None):
            raise UnsafeCheckpointError(
                f"{unsafe}: loading that could run code, and no checkpoint of a training run needs it; nothing was "
                "loaded. Go on from a checkpoint of your own, or fine-tune the weights (model.safetensors) of this one"
            )
        if trainer.continuation is None or trainer.continuation.checkpoint != folder:
            trainer.continuation = _continuation(trainer, folder)
        trainer._whole_checkpoint = folder
        begin = _Begin(trainer, in_the_way)
        stack.enter_context(_watched(trainer, begin))
        if folder.resolve().parent == output.resolve():
            stack.enter_context(same_curves(trainer, output, _step_of(folder)))
        try:
            with data_only():
                yield checkpoint
        # What transformers, torch, PEFT and the engines raise for weights or optimizer states that are missing or
        # misshapen.
        except (RuntimeError, ValueError, KeyError) as error:
            if (
                begin.seen
                or isinstance(error, torch.OutOfMemoryError)
                or type(error).__module__.startswith("mce_llm.")
            ):
                raise
            raise CheckpointError(
                f"cannot go on from {folder}: {cause(error)}. Is it of another model, other adapters or another optimizer? "
                "Set what it was trained with, or start anew (a recipe: --resume false --overwrite true)"
            ) from error
        finally:
            trainer.continuation = None


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Have one process hold the folder for all of this launch, unless what called the trainer does so already."""
    own = PartialState().is_main_process and not holds_folder(folder)
    problem = None
    if own:
        try:
            hold_folder(folder)
        except OutputError as error:
            problem = error
    if refused := next(filter(None, gather(problem)), None):
        raise shared(refused)
    try:
        yield
    finally:
        if own:
            release_folder(folder)


@contextmanager
def _watched(trainer: Any, callback: TrainerCallback) -> Iterator[None]:
    """Have a callback before all others: the rest may ask what it has found out."""
    trainer.callback_handler.callbacks.insert(0, callback)
    try:
        yield
    finally:
        trainer.remove_callback(callback)


class _Begin(TrainerCallback):
    """Sees to it that what was announced is in force, once everything has been loaded.

    Args:
        trainer: The trainer.
        in_the_way: Folders to delete then.

    Attributes:
        seen: Whether training has begun.
    """

    def __init__(self, trainer: Any, in_the_way: list[Path] | None = None) -> None:
        self._trainer, self._in_the_way = trainer, in_the_way or []
        self.seen = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep gradients sharded, and begin the record of the settings, or go on with that of the checkpoint."""
        self.seen = True
        if line := keep_gradients_sharded(self._trainer):
            say(line)
        going_on: Continuation | None = self._trainer.continuation
        settings = settings_of(self._trainer)
        if going_on is None:
            self._trainer.run_settings = RunSettings(settings)
            return
        # The state of the checkpoint brings the steps between logs, evaluations and saves of that time along.
        state.compute_steps(args, state.max_steps)
        self._trainer.run_settings = going_on.recorded(settings, state.global_step)
        for line in going_on.said(state.global_step):
            say(line)
        if PartialState().is_local_main_process:
            for folder in self._in_the_way:
                remove_if_there(folder)


def settings_of(trainer: Any) -> dict[str, Any]:
    """All settings of the run that a trainer is part of, or those of the trainer."""
    if trainer.all_settings is not None:
        return dict(trainer.all_settings)
    return training_settings(trainer.args, trainer.matrix_patch.config)


def on_first(work: Callable[[], Any]) -> Any:
    """What a function returns on the first process, or raises there, on all of them; it only reads."""
    result = problem = None
    if PartialState().is_main_process:
        try:
            result = work()
        except MceLlmError as error:
            problem = error
    result, problem = gather((result, problem))[0]
    if problem is not None:
        raise shared(problem)
    return result


def _continuation(trainer: Any, folder: Path) -> Continuation:
    """How a trainer that was made in Python goes on from a checkpoint."""

    def compare() -> Continuation:
        before, settings = RunSettings.read(folder), settings_of(trainer)
        if before is None:
            say(
                f"{folder} does not say what it was trained with: its optimizer and schedule go on as they are"
            )
            return unknown_before(folder, settings)
        return continuation(
            folder, before, settings, groups=[type(trainer.args)], processes=trainer.args.world_size
        )

    found: Continuation = on_first(compare)
    return found


def _step_of(folder: Path) -> int:
    """The step that a checkpoint was saved at."""
    try:
        return int(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
