"""Linear classifiers on features that do not learn: several side by side, each with a learning rate of its own.

What they have in common is the features and the statistics that these are normalised with; nothing that one head does
reaches another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn import functional as F

from mce_llm.vision.models import ProcessBatchNorm
from mce_llm.vision.training.optimizers import optimizer_of, parameter_groups

INITIAL_STD = 0.01  # of the weights, as in MoCo's and all later protocols
NORM_EPS = 1e-6  # as in MAE's and Matrix-SSL's linear evaluation


class StepResult(NamedTuple):
    """What a batch gave, over all processes and before its step.

    Attributes:
        losses: (heads,) sums of the cross-entropy over the images, nats.
        correct: (heads,) numbers of images whose class came first.
        images: How many there were.
    """

    losses: Tensor
    correct: Tensor
    images: int


class ParallelHeads(nn.Module):
    """`count` linear classifiers on the same features, all with the same initial weights.

    So each learns what it would learn alone, and a sweep over learning rates costs one pass over the features.

    Args:
        width: d.
        num_classes: C.
        count: How many.
        batch_norm: Normalise the features by batch norm without affine parameters first, over the batch of all
            processes in training and by running averages in evaluation.
        seed: Of the initial weights.
    """

    def __init__(self, width: int, num_classes: int, count: int, *, batch_norm: bool, seed: int) -> None:
        super().__init__()
        self.norm = ProcessBatchNorm(width, eps=NORM_EPS, affine=False) if batch_norm else nn.Identity()
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(count))
        weight = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(seed)) * INITIAL_STD
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            with torch.no_grad():
                head.weight.copy_(weight)
                head.bias.zero_()

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits (B, C) of each head for features (B, d)."""
        features = self.norm(features)
        return [head(features) for head in self.heads]

    def train_step(self, optimizer: torch.optim.Optimizer, features: Tensor, labels: Tensor) -> StepResult:
        """One step on the mean cross-entropy of the batch of all processes, which call this together.

        Args:
            optimizer: Of the heads' parameters (`heads_optimizer`).
            features: (B, d) of this process, float32; B may differ between processes.
            labels: (B,) int64.

        Returns:
            Losses and hits of the batch of all processes.
        """
        self.train()
        logits = self(features)
        sums = torch.stack([F.cross_entropy(scores, labels, reduction="sum") for scores in logits])
        hits = torch.stack([(scores.argmax(dim=1) == labels).sum() for scores in logits])
        noted = _summed(torch.cat([sums.detach(), hits.to(sums), sums.new_tensor([len(labels)])]))
        images = int(noted[-1].item())
        optimizer.zero_grad(set_to_none=True)
        (sums.sum() / images).backward()
        self._add_gradients()
        optimizer.step()
        count = len(self.heads)
        return StepResult(noted[:count].cpu(), noted[count:-1].cpu(), images)

    @torch.no_grad()
    def logits(self, features: Tensor, head: int, rows: int = 8192) -> Tensor:
        """What one head says of many images, in evaluation mode.

        Args:
            features: (n, d) on any device.
            head: Which one.
            rows: How many at once.

        Returns:
            (n, C) on the CPU.
        """
        self.eval()
        device = next(self.parameters()).device
        return torch.cat(
            [self.heads[head](self.norm(block.to(device))).cpu() for block in features.split(rows)]
        )

    def _add_gradients(self) -> None:
        if PartialState().num_processes == 1:
            return
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        flat = _summed(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def heads_optimizer(
    name: str, heads: ParallelHeads, rates: Sequence[float], momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """One optimizer in which every head has its own learning rate.

    Args:
        name: sgd or lars; under lars biases are neither adapted nor decayed.
        heads: The classifiers.
        rates: Their learning rates, in their order.
        momentum: Of all.
        weight_decay: Of all.

    Returns:
        The optimizer.
    """
    groups = []
    for head, rate in zip(heads.heads, rates, strict=True):
        if name == "lars":
            groups += parameter_groups(head, weight_decay, lars=True, lr=rate)
        else:
            groups.append({"params": list(head.parameters()), "weight_decay": weight_decay, "lr": rate})
    return optimizer_of(name, groups, lr=rates[0], momentum=momentum)


def _summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place of `values`."""
    if PartialState().num_processes > 1:
        torch.distributed.all_reduce(values)
    return values
