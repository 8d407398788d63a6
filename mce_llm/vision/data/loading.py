"""Batches of views, loaded by worker processes, each sample from a seed of its own.

Which sample is in which batch is decided in `mce_llm.vision.data.sampling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mce_llm.running.workers import shield_workers
from mce_llm.vision.data.announcing import announce
from mce_llm.vision.data.augmentations import ViewTransform
from mce_llm.vision.data.errors import ImageDataError
from mce_llm.vision.data.sampling import EpochSampler, Key, OrderedSampler, sample_seed
from mce_llm.vision.data.sources import ImageSource
from mce_llm.vision.data.workers import default_workers

_PREFETCHED_BATCHES = 2


class ViewBatch(NamedTuple):
    """A batch.

    Attributes:
        views: One float32 tensor (batch, 3, size, size) for each view that the transform draws.
        labels: int64, (batch,).
        indices: int64, (batch,); the images' places in their source.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    indices: Tensor

    @property
    def images(self) -> Tensor:
        """The only view, where there is one."""
        (view,) = self.views
        return view


class ViewLoader:
    """Iterates over the batches of one epoch after the other; `view_loader` makes it.

    Attributes:
        num_workers: How many processes prepare batches.
    """

    def __init__(
        self, dataset: SeededViews, sampler: EpochSampler | OrderedSampler, num_workers: int
    ) -> None:
        self.num_workers = num_workers
        self.sampler = sampler
        self._loader: DataLoader[Any] = shield_workers(
            DataLoader(
                dataset,
                batch_sampler=sampler,
                num_workers=num_workers,
                collate_fn=_as_it_is,
                pin_memory=torch.cuda.is_available(),
                persistent_workers=num_workers > 0,
                prefetch_factor=_PREFETCHED_BATCHES if num_workers else None,
                generator=torch.Generator(),  # otherwise it would draw from the default one
            )
        )

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Say which epoch the next iteration gives.

        Args:
            epoch: From 0; it is 0 until something else is said.
            skip: Batches at its beginning that are left out, without loading their images.

        Raises:
            ImageDataError: An epoch has no so many batches.
        """
        self.sampler.set_epoch(epoch, skip)

    def __len__(self) -> int:
        """Batches of this process in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[ViewBatch]:
        """The batches of the epoch that was set, after those that are skipped.

        Raises:
            ImageDataError: An image cannot be used.
        """
        for batch in self._loader:
            if isinstance(batch, ImageDataError):
                raise batch
            yield batch


class SeededViews(Dataset):
    """Views by (epoch, index): the same ones in any process and in any order."""

    def __init__(self, source: ImageSource, transform: ViewTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, key: Key) -> tuple[tuple[Tensor, ...], int, int]:
        """The views as uint8, the label and the index.

        Raises:
            ImageDataError: The image cannot be used.
        """
        epoch, index = key
        image, label = self.source[index]
        # torch.manual_seed would ask for every accelerator, which takes a hundred times as long.
        torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
        return self.transform.draw(image), label, index

    def __getitems__(self, keys: list[Key]) -> ViewBatch | ImageDataError:
        """A batch, or what is wrong with one of its images: raised in a worker, it would arrive wrapped in a traceback."""
        state = torch.get_rng_state()
        try:
            drawn, labels, indices = zip(*[self[key] for key in keys], strict=True)
        except ImageDataError as error:
            return error
        finally:
            torch.set_rng_state(state)
        views = tuple(self.transform.normalize(torch.stack(view)) for view in zip(*drawn, strict=True))
        return ViewBatch(views, torch.tensor(labels), torch.tensor(indices))


def view_loader(
    source: ImageSource,
    transform: ViewTransform,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int | None = None,
) -> ViewLoader:
    """Load batches of views.

    Args:
        source: The images.
        transform: What `train_views`, `classify_view` or `eval_view` made, or another `ViewTransform`.
        batch_size: Images in a batch of this process.
        seed: Of the order and of all views.
        shuffle: For training: a new order in each epoch, and as many batches in every process. Otherwise each image
            once, in the source's order, with nothing dropped or repeated (`OrderedSampler`).
        drop_last: When shuffling, leave out the last images of an epoch that make no whole batch.
        rank: This process.
        world_size: How many processes share an epoch.
        num_workers: Processes that prepare batches; by default as many as there are cores for each training process,
            up to 16.

    Returns:
        The loader; `set_epoch` before each epoch.

    Raises:
        ImageDataError: There are not enough images for a batch, or the numbers do not fit together.
    """
    sampler: EpochSampler | OrderedSampler
    if shuffle:
        sampler = EpochSampler(
            len(source), batch_size, seed=seed, rank=rank, world_size=world_size, drop_last=drop_last
        )
    else:
        sampler = OrderedSampler(len(source), batch_size, rank=rank, world_size=world_size)
    if num_workers is None:
        num_workers = default_workers()
        announce(f"{source.name}: loaded by {num_workers} worker processes (num_workers is not set)")
    return ViewLoader(SeededViews(source, transform, seed), sampler, num_workers)


def _as_it_is(batch: Any) -> Any:
    return batch
