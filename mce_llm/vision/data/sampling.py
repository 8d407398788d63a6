"""Which images make up which batch of which process, and the seed that belongs to each of them.

Everything here is a function of numbers that are the same in all processes, so that nothing has to be agreed on, and
a run that goes on in the middle of an epoch sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from mce_llm.vision.data.errors import ImageDataError

_MASK = 2**64 - 1
Key = tuple[int, int]  # epoch, index


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A seed in [0, 2⁶³) that is all a sample's randomness: neighbours in any argument have nothing in common.

    torch's CPU generator uses its low 32 bits; that two of a run's samples share them does no harm.

    Args:
        seed: The run's.
        epoch: From 0.
        index: The image's place in its source.

    Returns:
        The seed.
    """
    return _mix(_mix(_mix(seed & _MASK) ^ epoch) ^ index) >> 1


def _mix(x: int) -> int:
    """One step of SplitMix64 (Steele, Lea, Flood, 2014), a bijection on 64 bits."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class EpochSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) for one process, from a permutation that (seed, epoch) fixes.

    A global batch is `batch_size · world_size` images in the order of the permutation; rank r takes the r-th of its
    equal parts. So two processes with half the batch each see in a step what one process sees.

    Args:
        count: How many images the source has.
        batch_size: Images in a batch of this process.
        seed: Fixes the permutations.
        rank: This process, from 0.
        world_size: How many processes there are.
        drop_last: Leave out the last images of an epoch that make no whole global batch. Otherwise they are a last
            batch that is dealt out as evenly as can be, and dropped only where there are fewer images than processes,
            so that all processes always take as many steps.

    Raises:
        ImageDataError: An epoch would have no batch, or the numbers do not fit together.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        _check(batch_size, rank, world_size)
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._global = batch_size * world_size
        self._rest = 0 if drop_last or count % self._global < world_size else count % self._global
        if count < self._global and not self._rest:
            processes = f" in each of {world_size} processes" if world_size > 1 else ""
            raise ImageDataError(
                f"a batch of {batch_size} images{processes} needs {self._global} images, and there are {count}; "
                "take smaller batches or more images"
            )
        self.epoch = self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Say which epoch the next iteration gives, and how many of its batches were seen before.

        Args:
            epoch: From 0.
            skip: Batches to leave out at the beginning; their images are not loaded.

        Raises:
            ImageDataError: Not a number of batches that an epoch has.
        """
        if not 0 <= skip <= len(self):
            raise ImageDataError(f"an epoch has {len(self)} batches, so {skip} of them cannot be skipped")
        if epoch < 0:
            raise ImageDataError(f"epochs are counted from 0, got {epoch}")
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        """Batches in a whole epoch, the same for all processes."""
        return self.count // self._global + bool(self._rest)

    def __iter__(self) -> Iterator[list[Key]]:
        return self._batches(self.epoch, self.skip)

    def _batches(self, epoch: int, skip: int) -> Iterator[list[Key]]:
        order = np.random.default_rng(sample_seed(self.seed, epoch, -1 & _MASK)).permutation(self.count)
        for number in range(skip, len(self)):
            batch = order[number * self._global : (number + 1) * self._global]
            part = np.array_split(batch, self.world_size)[self.rank]
            yield [(epoch, index) for index in part.tolist()]


class OrderedSampler(Sampler[list[Key]]):
    """Every image once, in the source's order: rank r takes the r-th of `world_size` stretches.

    Nothing is dropped or repeated, so stretches may differ by one image and processes by one batch, and what the
    processes compute, put together in the order of their ranks, is in the source's order.

    Args:
        count: How many images the source has.
        batch_size: Images in a batch of this process; the last one may have fewer.
        rank: This process, from 0.
        world_size: How many processes there are.

    Raises:
        ImageDataError: The numbers do not fit together.
    """

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        _check(batch_size, rank, world_size)
        self.batch_size = batch_size
        self.epoch = self.skip = 0
        self.begin, self.end = count * rank // world_size, count * (rank + 1) // world_size

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Say which epoch the next iteration gives (for the seeds; the order is always the same).

        Args:
            epoch: From 0.
            skip: Batches to leave out at the beginning.

        Raises:
            ImageDataError: Not a number of batches that there are.
        """
        if not 0 <= skip <= len(self) or epoch < 0:
            raise ImageDataError(
                f"epochs are counted from 0 and have {len(self)} batches, got epoch {epoch}, skip {skip}"
            )
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        """Batches of this process."""
        return -(-(self.end - self.begin) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        return self._batches(self.epoch, self.skip)

    def _batches(self, epoch: int, skip: int) -> Iterator[list[Key]]:
        for start in range(self.begin + skip * self.batch_size, self.end, self.batch_size):
            yield [(epoch, index) for index in range(start, min(start + self.batch_size, self.end))]


def _check(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise ImageDataError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= rank < world_size:
        raise ImageDataError(f"rank must be in [0, {world_size}) with {world_size} processes, got {rank}")
