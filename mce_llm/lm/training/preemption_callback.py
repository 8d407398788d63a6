"""End the Trainer's loop in `PreemptedError` after the save that all ranks agreed to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mce_llm.running.preemption import PreemptedError, reason


class PreemptionCallback(TrainerCallback):
    """Ends training in `PreemptedError` after the save that all ranks agreed to.

    Args:
        agreed: Whether they have; `GuardCallback`, which asks for that save, comes before this one.
    """

    def __init__(self, agreed: Callable[[], bool]) -> None:
        self._agreed = agreed

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """At the end of an epoch, save after the epoch's own evaluation: a resumed run starts with the next epoch."""
        if self._agreed() and state.epoch is not None and state.epoch == int(state.epoch):
            control.should_save = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Request the save that `on_step_end` postponed."""
        if self._agreed():
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End training after the save.

        Raises:
            PreemptedError: The ranks have agreed to stop.
        """
        if self._agreed():
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            raise PreemptedError(reason(), folder)
