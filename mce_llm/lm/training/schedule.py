"""Give optimizer and learning-rate schedule the values of the arguments after the state of a checkpoint was loaded.

That state holds the learning rate, the weight decay and the other hyperparameters that the checkpoint was trained with,
and puts them in the place of those that were asked for. Where these differ they are put back here, so that the learning
rate at step s is that of the new schedule at s, on every engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from mce_llm.lm.training.resuming import OF_THE_SCHEDULE
from mce_llm.running.folder import CheckpointError
from mce_llm.running.processes import shared

# What the arguments say of a group of parameters; the rest of it, such as a count of steps, is state.
_HYPERPARAMETERS = ("initial_lr", "weight_decay", "betas", "eps")


@dataclass(frozen=True)
class FreshSchedule:
    """What optimizer and schedule were made with, before a state was loaded into them.

    Attributes:
        groups: Of each group of parameters, the hyperparameters.
        base_rates: Of each, the learning rate that the schedule multiplies; None for a schedule whose rate at a step is
            not a function of the step.
        clip: The gradient norm that DeepSpeed's optimizer clips at; None for others, which do not clip.
    """

    groups: tuple[dict[str, Any], ...]
    base_rates: tuple[float, ...] | None
    clip: float | None

    @classmethod
    def of(cls, optimizer: Any, scheduler: Any) -> FreshSchedule:
        """Take note of them."""
        groups = tuple(
            {name: group[name] for name in _HYPERPARAMETERS if name in group}
            for group in optimizer.param_groups
        )
        rates = tuple(map(float, scheduler.base_lrs)) if isinstance(scheduler, LambdaLR) else None
        return cls(groups, rates, getattr(_inner(optimizer), "clip_grad", None))

    def put_back(self, optimizer: Any, scheduler: Any) -> None:
        """Put them in the place of those that were loaded, with the learning rate of the step that was loaded."""
        for group, fresh in zip(optimizer.param_groups, self.groups, strict=True):
            group.update(fresh)
        if self.clip is not None:
            _inner(optimizer).clip_grad = self.clip
        if self.base_rates is None:
            return
        rates = [
            base * factor(scheduler.last_epoch)
            for base, factor in zip(self.base_rates, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        scheduler.base_lrs = list(self.base_rates)
        scheduler._last_lr = rates


def reschedule(trainer: Any, fresh: FreshSchedule | None, checkpoint: Path, changed: frozenset[str]) -> None:
    """Have a trainer that has loaded a checkpoint go on with the optimizer and the schedule of its arguments.

    Args:
        trainer: A `Trainer`.
        fresh: What its optimizer and schedule were made with.
        checkpoint: For messages.
        changed: The settings of them that have another value than the checkpoint was trained with.

    Raises:
        CheckpointError: The learning rate is to change, and the schedule is not one that knows the rate of every step.
    """
    if fresh is None or (fresh.base_rates is None and changed & OF_THE_SCHEDULE):
        raise CheckpointError(
            f"cannot go on from {checkpoint} with another {', '.join(sorted(changed))}: the schedule "
            f"({type(trainer.lr_scheduler).__name__}) is not one that knows the rate of every step; give the settings that "
            "it was trained with, or leave scheduler and optimizer out of the DeepSpeed configuration"
        )
    fresh.put_back(trainer.optimizer, trainer.lr_scheduler)


def _inner(optimizer: Any) -> Any:
    """DeepSpeed's optimizer in accelerate's wrapper, or the optimizer."""
    return getattr(optimizer, "optimizer", optimizer)


def check_length(trainer: Any, checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint that lies behind the end of the training.

    Raises:
        CheckpointError: It does.
    """
    reached, last = trainer.state.global_step, trainer.state.max_steps
    if reached > last:
        problem = CheckpointError(
            f"cannot go on from {checkpoint}: it was saved at step {reached}, and the training ends at step {last}; raise "
            "max_steps or num_train_epochs, or take an earlier checkpoint"
        )
        raise shared(problem)
