"""The teacher: an exponential moving average of the student, parameters and buffers alike.

The official code averages the parameters alone; its teacher's batch norms keep statistics of their own, from their own
forward passes in training mode. Here the running statistics are averaged too, so that the saved teacher, used in
evaluation mode, has statistics that belong to its weights.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn


class MomentumTeacher(nn.Module):
    """θ_t ← m θ_t + (1 − m) θ_s after each optimizer step; m rises from `momentum` to 1 by half a cosine.

    The forward pass is without gradient and normalises by the statistics of the batch, as the student's does (the
    official code keeps the teacher in training mode); those statistics are then not written into its buffers, which
    come from the student by the same average.

    Args:
        student: Encoder and projector; copied.
        momentum: m at the first step; 0.996 in the official code.
    """

    def __init__(self, student: nn.Module, momentum: float = 0.996) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(
                f"the teacher's momentum must be in [0, 1], got {momentum}; 0.996 is the usual choice"
            )
        self.momentum = momentum
        self.network = copy.deepcopy(student).requires_grad_(False)

    def momentum_at(self, progress: float) -> float:
        """M after a share `progress` in [0, 1] of training: 1 − (1 − m₀)(1 + cos π·progress)/2."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2

    @torch.no_grad()
    def update(self, student: nn.Module, progress: float) -> None:
        """Move towards the student.

        Integer buffers (counters of batches) are copied; parameters and statistics are averaged in float32 or better.

        Args:
            student: What the teacher is a copy of, one optimizer step later.
            progress: Share of training done, for the momentum's schedule.
        """
        weight = 1 - self.momentum_at(progress)
        mine = dict(self.network.state_dict(keep_vars=True))
        theirs = student.state_dict(keep_vars=True)
        averaged = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [mine[name].data for name in averaged], [theirs[name].data for name in averaged], weight
        )
        for name, value in mine.items():
            if not value.is_floating_point():
                value.copy_(theirs[name])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """What the averaged network gives, as a constant; its buffers stay as they are."""
        norms = [module for module in self.network.modules() if isinstance(module, _NORMS)]
        before = [module.track_running_stats for module in norms]
        for module in norms:
            module.track_running_stats = False
        try:
            self.network.train()
            return self.network(images)
        finally:
            for module, tracked in zip(norms, before, strict=True):
                module.track_running_stats = tracked


_NORMS = (nn.modules.batchnorm._BatchNorm,)
