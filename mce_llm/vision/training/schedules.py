"""Learning rates as pure functions of the optimizer step, so that a run which goes on needs no state for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mce_llm.errors import MceLlmError


class ScheduleError(MceLlmError, ValueError):
    """A schedule that makes no sense; the message says which number to change."""


def learning_rate(base: float, batch_size: int) -> float:
    """The linear scaling rule: base · B/256 (Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677).

    Args:
        base: Learning rate of a batch of 256.
        batch_size: B, over all processes.

    Returns:
        The learning rate of a batch of B.

    Raises:
        ScheduleError: B < 1.
    """
    if batch_size < 1:
        raise ScheduleError(f"the batch over all processes must hold at least 1 image, got {batch_size}")
    return base * batch_size / 256


def warmup_cosine(step: int, total: int, warmup: int, base: float, final: float = 0.0) -> float:
    """Rise linearly to `base` during `warmup` steps, then fall to `final` by half a cosine.

    base · (t+1)/w for t < w, then final + (base − final) · (1 + cos(π (t−w)/(T−w)))/2. No step is made at a rate of 0
    unless `base` is 0; from step T on the rate is `final`.

    Args:
        step: t, the optimizer steps done before this one.
        total: T, steps of the whole training.
        warmup: w; 0 for none.
        base: Highest learning rate.
        final: Where the cosine ends.

    Returns:
        The learning rate of this step.

    Raises:
        ScheduleError: Not 0 ≤ w ≤ T with T ≥ 1, or t < 0.
    """
    if total < 1 or not 0 <= warmup <= total or step < 0:
        raise ScheduleError(
            f"a schedule needs total ≥ 1, 0 ≤ warmup ≤ total and step ≥ 0, got total {total}, warmup {warmup}, "
            f"step {step}; shorten the warm-up or train longer"
        )
    if step < warmup:
        return base * (step + 1) / warmup
    if step >= total:
        return final
    return final + (base - final) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def step_decay(step: int, milestones: Sequence[int], base: float, factor: float = 0.1) -> float:
    """`base`, multiplied by `factor` at each milestone: base · factor^#{milestone ≤ step}.

    Args:
        step: The optimizer steps done before this one.
        milestones: Steps from which on the rate is lower.
        base: The learning rate at first.
        factor: What it is multiplied by.

    Returns:
        The learning rate of this step.
    """
    return base * factor ** sum(step >= milestone for milestone in milestones)


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group's `lr` to a share of its `initial_lr`, which groups may have of their own.

    Args:
        optimizer: What `build_optimizer` or `optimizer_of` gave.
        share: What a schedule with base 1 says.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
