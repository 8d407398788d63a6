"""Means over the steps of an epoch, for the journal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class EpochMeans:
    """Sums kept on the device, so that no step waits for it.

    Args:
        accelerator: Of this run.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._begun = time.monotonic()
        self._sums: dict[str, Tensor] = {}
        self._steps: Counter[str] = Counter()
        self._images = 0
        self._correct, self._judged = torch.zeros(2, device=accelerator.device)
        self._has_probe = False

    def add(
        self,
        parts: Mapping[str, Tensor],
        images: int,
        correct: Tensor | None = None,
        judged: Tensor | None = None,
    ) -> None:
        """Note a step.

        Args:
            parts: The loss and what it is made of, the same in all processes; a part may be missing in some steps.
            images: Images of this process.
            correct: How many of them the online probe got right.
            judged: Of how many with a label.
        """
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._steps.update(parts.keys())
        self._images += images
        if correct is not None and judged is not None:
            self._correct += correct
            self._judged += judged
            self._has_probe = True

    def losses(self) -> dict[str, float]:
        """The mean of each part over the steps that had it, as `train/NAME`."""
        return {f"train/{name}": float(value) / self._steps[name] for name, value in self._sums.items()}

    def throughput(self) -> dict[str, float]:
        """`train/images_per_second` of all processes, and `train/probe_top1` if there is a probe. All processes call this."""
        sums = torch.stack([self._correct, self._judged, self._correct.new_tensor(self._images)])
        correct, judged, images = self._accelerator.reduce(sums, "sum").tolist()
        speed = {"train/images_per_second": images / (time.monotonic() - self._begun)}
        return {**speed, "train/probe_top1": correct / judged} if self._has_probe and judged else speed
