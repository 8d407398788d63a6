"""Call a `StepGuard` from the loops of a `Trainer`, and from the optimizer step inside DeepSpeed's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from mce_llm.lm.training.guard import StepGuard, forget_gradients, magnitudes

_logger = logging.get_logger(__name__)


class GuardCallback(TrainerCallback):
    """Asks the guard before every optimizer step, and saves and stops where the ranks agreed to.

    Args:
        guard: Of the run.
        engine: Returns the model as the engine has wrapped it, once training has begun.
        loss_scaler: Whether a loss scaler is in use (float16), which skips steps with non-finite gradients itself.

    Attributes:
        norm: Of the gradients of the coming step, set by the trainer once it is known; taken at the step.
    """

    def __init__(self, guard: StepGuard, engine: Callable[[], Any], *, loss_scaler: bool) -> None:
        self._guard, self._engine, self._loss_scaler = guard, engine, loss_scaler
        self._asked_by_engine = False
        self.norm: Tensor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Register the guard's hook on a gradient."""
        self._guard.forget_step()
        self._guard.watch(kwargs["model"])
        engine = self._engine()
        self._asked_by_engine = hasattr(engine, "is_gradient_accumulation_boundary")
        if self._asked_by_engine:
            guard_deepspeed(engine, self._guard, lambda: state.global_step + 1)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Agree on the step, unless DeepSpeed has already taken or skipped it."""
        norm, self.norm = self.norm, None
        if self._asked_by_engine:
            return
        if self._guard.agree(state.global_step + 1, None if norm is None else [norm]):
            return
        if self._loss_scaler:
            # It needs the gradients, and skips a step by itself where they are not finite; zeros it would take.
            if not self._guard.step_is_empty:
                return
            # They may be unscaled once, and were where they were clipped or their norm was taken.
            if norm is None and not args.max_grad_norm:
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
        """Remove the hook."""
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

    def may_step() -> bool:
        if not guard.watch_gradients:
            return guard.agree(step_number())
        return guard.agree(step_number(), reduced_norms(engine.optimizer))

    def step(*args: Any, **kwargs: Any) -> None:
        if not engine.is_gradient_accumulation_boundary() or may_step():
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


def reduced_norms(optimizer: Any) -> Iterable[Tensor] | None:
    """Norms of the gradients that this rank holds after ZeRO has reduced them, before it clips by them.

    ZeRO takes the norm over all ranks in the middle of its step, and some versions of it put -1 in the place of one that is
    not finite. So its parts are looked at before: those that it has taken itself while it offloaded gradients to the CPU,
    else the gradients of this rank's shard, once a step.

    Args:
        optimizer: Of a `DeepSpeedEngine`.

    Returns:
        None where it is none of ZeRO's, and the parameters have their gradients.
    """
    if taken := getattr(optimizer, "norm_for_param_grads", None):
        return [torch.as_tensor(norm) for norm in taken.values()]
    groups = getattr(optimizer, "averaged_gradients", None)
    if not groups:
        return None
    return magnitudes(
        gradient for group in groups.values() for gradient in group or () if gradient is not None
    )


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
