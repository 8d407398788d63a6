"""Which images make the n-th batch: shuffled epoch by epoch, wide images with wide and tall with tall.

The stream is a function of the seed alone, so that a resumed run skips to its iteration, and any number of processes
share the same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import DataLoader, Sampler

from mce_llm.running.workers import shield_workers
from mce_llm.vision.coco.annotations import CocoAnnotations
from mce_llm.vision.coco.dataset import EvaluationImages, TrainingImages, as_lists

Draw = tuple[int, int]  # (epoch, index)


def grouped_batches(
    positions: Sequence[int], groups: Sequence[int], batch_size: int, seed: int
) -> Iterator[list[Draw]]:
    """Batches without end; every image comes once per epoch, and all images of a batch are of one group.

    An image waits until its group has `batch_size` of them, over the end of an epoch if need be, so none is dropped.

    Args:
        positions: The images to draw from.
        groups: The group of each.
        batch_size: Images in a batch, over all processes.
        seed: Of the run.

    Yields:
        (epoch, position) of each image.
    """
    waiting: dict[int, list[Draw]] = {}
    for epoch in itertools.count():
        for i in np.random.default_rng([seed, epoch]).permutation(len(positions)):
            batch = waiting.setdefault(groups[i], [])
            batch.append((epoch, positions[i]))
            if len(batch) == batch_size:
                yield waiting.pop(groups[i])


class ProcessShare(Sampler[list[Draw]]):
    """The share of one process in the batches `start` … `stop` − 1.

    Args:
        positions: The images to draw from.
        groups: The group of each.
        batch_size: Images in a batch, over all processes; a multiple of their number.
        seed: Of the run.
        start: First batch.
        stop: The batch after the last one.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        positions: Sequence[int],
        groups: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._stream = (list(positions), list(groups), batch_size, seed)
        self._range = (start, stop)
        self._share = slice(rank, None, world_size)

    def __len__(self) -> int:
        return self._range[1] - self._range[0]

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in itertools.islice(grouped_batches(*self._stream), *self._range):
            yield batch[self._share]


def training_loader(
    dataset: TrainingImages,
    annotations: CocoAnnotations,
    *,
    positions: Sequence[int],
    group_by_shape: bool,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rank: int,
    world_size: int,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[tuple[list, list]]:
    """Batches `start` … `stop` − 1 of a run, this process's part of each: lists of images and of targets.

    Args:
        dataset: Where the images come from.
        annotations: Their sizes.
        positions: The images to draw from.
        group_by_shape: Keep wide and tall images apart, which saves padding.
        batch_size: Images in a batch, over all processes.
        seed: Of the run.
        start: First batch.
        stop: The batch after the last one.
        rank: Of this process.
        world_size: Number of processes.
        num_workers: Processes that decode.
        pin_memory: Whether the images go to an accelerator.

    Returns:
        The loader.
    """
    images = [annotations.images[i] for i in positions]
    share = ProcessShare(
        positions,
        [int(image.width > image.height) if group_by_shape else 0 for image in images],
        batch_size=batch_size,
        seed=seed,
        start=start,
        stop=stop,
        rank=rank,
        world_size=world_size,
    )
    loader: DataLoader = DataLoader(
        dataset, batch_sampler=share, num_workers=num_workers, collate_fn=as_lists, pin_memory=pin_memory
    )
    return shield_workers(loader)


def evaluation_loader(
    dataset: EvaluationImages, *, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader[tuple[list, list]]:
    """The images that a process is judged on, in order: lists of images and of positions.

    Args:
        dataset: This process's images.
        batch_size: Images at once.
        num_workers: Processes that decode.
        pin_memory: Whether the images go to an accelerator.

    Returns:
        The loader.
    """
    loader: DataLoader = DataLoader(
        dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=as_lists, pin_memory=pin_memory
    )
    return shield_workers(loader)
