"""Call a `StepGuard` from the loops of a `Trainer`, and from the optimizer step inside DeepSpeed's engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from mce_llm.lm.training.guard import StepGuard, forget_gradients

_logger = logging.get_logger(__name__)


class GuardCallback(TrainerCallback):
    """Asks the guard before every optimizer step, and saves and stops where the ranks agreed to.

    Args:
        guard: Of the run.
        engine: Returns the model as the engine has wrapped it, once training has begun.
        loss_scaler: Whether a loss scaler is in use (float16), which skips steps with non-finite gradients itself.
    """

    def __init__(self, guard: StepGuard, engine: Callable[[], Any], *, loss_scaler: bool) -> None:
        self._guard, self._engine, self._loss_scaler = guard, engine, loss_scaler
        self._asked_by_engine = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Register the gradient hooks."""
        self._guard.watch(kwargs["model"])
        engine = self._engine()
        self._asked_by_engine = hasattr(engine, "is_gradient_accumulation_boundary")
        if self._asked_by_engine:
            guard_deepspeed(engine, self._guard, lambda: state.global_step + 1)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Agree on the step, unless DeepSpeed has already taken or skipped it."""
        if self._asked_by_engine or self._guard.agree(state.global_step + 1):
            return
        if self._loss_scaler:
            # It needs the gradients, and skips a step by itself where they are not finite; zeros it would take.
            if not self._guard.step_is_empty:
                return
            if not args.max_grad_norm:  # else they were unscaled for clipping, which may happen once
                kwargs["optimizer"].scaler.unscale_(kwargs["optimizer"].optimizer)
        forget_gradients(kwargs["model"].parameters())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn of a skipped step; save and stop where the ranks agreed to."""
        if self._guard.step_is_bad and PartialState().is_main_process:
            _logger.warning(self._guard.last_report)
        if self._guard.stop:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the gradient hooks."""
        self._guard.unwatch()


def guard_deepspeed(engine: Any, guard: StepGuard, step_number: Callable[[], int]) -> None:
    """Make `engine.step`, which accelerate calls inside its backward, ask the guard first.

    Args:
        engine: A `DeepSpeedEngine`.
        guard: Of the run.
        step_number: The number of the optimizer step that is coming.
    """
    if hasattr(engine.step, "_is_guarded"):
        return
    own_step, own_optimizer_step = engine.step, engine.optimizer.step

    def step(*args: Any, **kwargs: Any) -> None:
        if not engine.is_gradient_accumulation_boundary() or guard.agree(step_number()):
            own_step(*args, **kwargs)
            return
        # DeepSpeed updates its counters and buffers as for a step that a loss scaler discards.
        optimizer = engine.optimizer
        optimizer.step = lambda *_, **__: _discard(optimizer)
        try:
            own_step(*args, **kwargs)
        finally:
            optimizer.step = own_optimizer_step
        optimizer.overflow = False  # the learning-rate schedule advances, as with other engines

    step._is_guarded = True  # type: ignore[attr-defined]
    engine.step = step


def _discard(optimizer: Any) -> None:
    """What ZeRO's optimizers do when a loss scaler discards a step."""
    optimizer.overflow = True
    optimizer.zero_grad(set_to_none=True)
    if getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False):
        optimizer.reset_cpu_buffers()
        return
    for name in ("averaged_gradients", "all_grad_tensors"):
        for key in getattr(optimizer, name, {}):
            getattr(optimizer, name)[key] = None
    if hasattr(optimizer, "_release_preflattened_grad_buffers"):
        optimizer._release_preflattened_grad_buffers()
