"""Batches of features for the training of a classifier: kept from one encoding, or encoded anew in each epoch.

Both kinds deal the same images to the same steps whatever the number of processes, and both can skip what was seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mce_llm.vision.data import DataSettings, EpochSampler, ImageSource, classify_view, view_loader


class FeatureBatches(Protocol):
    """Epochs of (features (B, d), labels (B,)) on the accelerator's device, this process's part of each batch."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, number: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch after the first `skip`."""


class KeptBatches:
    """Batches of features that were computed before, in a new order in each epoch.

    Args:
        features: (n, d), the same in all processes.
        labels: (n,).
        batch_size: Over all processes.
        accelerator: Of this run.
        seed: Of the orders.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, batch_size: int, accelerator: Accelerator, seed: int
    ) -> None:
        self.features, self.labels, self.device = features, labels, accelerator.device
        self._sampler = EpochSampler(
            len(labels),
            batch_size // accelerator.num_processes,
            seed=seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            drop_last=_last_is_single(len(labels), batch_size),
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def epoch(self, number: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch.

        Args:
            number: From 0.
            skip: Batches at its beginning to leave out.

        Yields:
            Features and labels.
        """
        self._sampler.set_epoch(number, skip)
        for keys in self._sampler:
            places = torch.tensor([index for _, index in keys])
            yield (
                self.features[places].to(self.device, non_blocking=True),
                self.labels[places].to(self.device, non_blocking=True),
            )


class EncodedBatches:
    """Batches of random crops, encoded as they come by an encoder in evaluation mode and without gradient.

    Args:
        encoder: Images to features.
        source: The images.
        data: Size and workers.
        batch_size: Over all processes.
        encode_batch_size: Images that go through the encoder at once.
        crop_scale_min: Least share of an image's area that a crop may have.
        accelerator: Of this run.
        seed: Of orders and crops.
    """

    def __init__(
        self,
        encoder: nn.Module,
        source: ImageSource,
        data: DataSettings,
        batch_size: int,
        encode_batch_size: int,
        crop_scale_min: float,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self.encoder = encoder.to(accelerator.device).eval().requires_grad_(False)
        self.accelerator, self.encode_batch_size = accelerator, encode_batch_size
        self._loader = view_loader(
            source,
            classify_view(data.image_size, source.mean, source.std, crop_scale_min=crop_scale_min),
            batch_size // accelerator.num_processes,
            seed=seed,
            drop_last=_last_is_single(len(source), batch_size),
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            num_workers=data.num_workers,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, number: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch.

        Args:
            number: From 0.
            skip: Batches at its beginning to leave out; their images are not loaded.

        Yields:
            Features and labels.
        """
        self._loader.set_epoch(number, skip)
        device = self.accelerator.device
        self.encoder.eval()
        for batch in self._loader:
            with torch.no_grad(), self.accelerator.autocast():
                parts = batch.images.split(self.encode_batch_size)
                features = torch.cat(
                    [self.encoder(part.to(device, non_blocking=True)).float() for part in parts]
                )
            yield features, batch.labels.to(device, non_blocking=True)


def _last_is_single(count: int, batch_size: int) -> bool:
    """Whether an epoch's last batch would be one image, which has no variance for a batch norm."""
    return count % batch_size == 1
