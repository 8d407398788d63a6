"""A linear classifier that learns beside a pretraining, to watch it: a cheap, noisy preview of the linear evaluation.

Its features are detached, so the encoder does not know of it. It is no result: the encoder changes under it all the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mce_llm.vision.probing.accuracy import rank_of_label
from mce_llm.vision.probing.heads import ParallelHeads, heads_optimizer


class OnlineProbe(nn.Module):
    """Batch norm without affine parameters and a linear layer, trained by SGD on its own.

    The state dict has the optimizer's state too, so a pretraining that goes on has the same probe. With several processes
    each gives its own features, and the step is that of all of them together.

    Args:
        width: d, of the features.
        num_classes: C.
        lr: Learning rate, constant.
        momentum: Of SGD.
        seed: Of the weights.
    """

    def __init__(
        self, width: int, num_classes: int, *, lr: float = 0.1, momentum: float = 0.9, seed: int = 0
    ) -> None:
        super().__init__()
        self.classifier = ParallelHeads(width, num_classes, 1, batch_norm=True, seed=seed)
        self.optimizer = heads_optimizer("sgd", self.classifier, [lr], momentum, weight_decay=0.0)

    def step(self, features: Tensor, labels: Tensor) -> float:
        """Learn from a batch. All processes call this together.

        Args:
            features: (B, d) of this process; detached, and used as float32.
            labels: (B,) int64 in [0, C).

        Returns:
            The mean cross-entropy over the batch of all processes before the step, nats.
        """
        with torch.autocast(features.device.type, enabled=False):
            result = self.classifier.train_step(self.optimizer, features.detach().float(), labels)
        return result.losses[0].item() / result.images

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The share of images whose class comes first; the probe is left as it is.

        Args:
            features: (n, d).
            labels: (n,) int64.

        Returns:
            Top-1 accuracy in [0, 1], of the features given to this process.
        """
        logits = self.classifier.logits(features.float(), 0)
        return (rank_of_label(logits, labels.cpu()) == 0).float().mean().item()

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, for `state_dict`."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the optimizer's state from a `state_dict`."""
        self.optimizer.load_state_dict(state)
