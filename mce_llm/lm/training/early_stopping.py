"""Stop training when evaluations no longer improve; a run that is resumed goes on counting where it was interrupted."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments


class EarlyStopping(EarlyStoppingCallback):
    """Hugging Face's callback, with its count of evaluations without improvement restored from a checkpoint.

    The stock one begins to count anew unless `restore_callback_states_from_checkpoint` is set, so that a run that was
    interrupted would stop later than one that was not.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the settings, and take the count over from the checkpoint that the run goes on from."""
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step == 0:  # a second training of this trainer begins anew
            self.early_stopping_patience_counter = 0
            return
        saved: Any = state.stateful_callbacks or {}
        kept = saved.get(type(self).__name__) or {}
        for kept_state in kept if isinstance(kept, list) else [kept]:
            count = kept_state.get("attributes", {}).get("early_stopping_patience_counter")
            if count is not None:
                self.early_stopping_patience_counter = int(count)


def add_early_stopping(trainer: Any) -> None:
    """Add the callback that the arguments of a trainer ask for, if they do."""
    patience = getattr(trainer.args, "early_stopping_patience", 0)
    if patience:
        trainer.add_callback(EarlyStopping(patience, trainer.args.early_stopping_threshold))
