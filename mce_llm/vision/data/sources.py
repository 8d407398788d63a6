"""What every source of images can do, and the subsets that can be taken of one.

A source maps an index to an image and a label. It knows all labels and names without decoding an image. Where images
come from is in the modules beside this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from mce_llm.vision.data.errors import ImageDataError

UNLABELED = -1
"""The label of an image that has none."""

# The order in which `balanced_indices` takes images is the same in every run.
_LIMIT_SEED = 20230517


class Statistics(NamedTuple):
    """Mean and standard deviation of the red, green and blue values, in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageSource(Dataset, ABC):
    """Images by index: `source[i]` is a uint8 (3, height, width) tensor in RGB and its label.

    Attributes:
        name: What the source is called in messages, with its split.
        classes: The names of the classes; labels are places in this list.
        labels: The label of each image; `UNLABELED` (−1) where it has none.
        numbered: Whether the classes have no names, and `classes` lists their numbers.
        statistics: Mean and standard deviation that views are normalised with.
    """

    name: str
    classes: list[str]
    numbered: bool = False
    labels: list[int]
    statistics: Statistics = IMAGENET

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean of each channel in [0, 1]."""
        return self.statistics.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of each channel in [0, 1]."""
        return self.statistics.std

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """A name for each image: its path below the source's directory, or its index."""

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """Decode one image.

        Args:
            index: Which one, from 0.

        Returns:
            RGB as uint8, (3, height, width).

        Raises:
            CorruptImageError: It cannot be decoded.
        """

    def stored(self, index: int) -> bytes:
        """What one image is known again by: as it is stored, or its pixels where it is not stored by itself.

        Args:
            index: Which one.
        """
        pixels = self.image(index)
        return repr(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image and label.

        Raises:
            CorruptImageError: The image cannot be decoded.
        """
        return self.image(index), self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """The images at these indices, in this order, as a source of its own.

        Args:
            indices: Places in this source; none may come twice.

        Returns:
            The subset; its classes are those of the whole.

        Raises:
            ImageDataError: There are none, or some are out of range or come twice.
        """
        return Subset(self, indices)

    def __str__(self) -> str:
        known = sum(label != UNLABELED for label in self.labels)
        labels = f"{len(self.classes)} classes" if known else "no labels"
        if 0 < known < len(self):
            labels += f", {len(self) - known:,} without a label"
        return f"{self.name}: {len(self):,} images, {labels}"


class Subset(ImageSource):
    """Some images of another source; `ImageSource.subset` makes it."""

    def __init__(self, whole: ImageSource, indices: Sequence[int]) -> None:
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if not len(chosen):
            raise ImageDataError(f"a subset of {whole.name} must hold at least one image, got no index")
        if chosen.min() < 0 or chosen.max() >= len(whole):
            raise ImageDataError(
                f"indices into {whole.name} must be in [0, {len(whole)}), got {chosen.min()} to {chosen.max()}"
            )
        unique, counts = np.unique(chosen, return_counts=True)
        if len(unique) < len(chosen):
            raise ImageDataError(
                f"index {unique[counts > 1][0]} of {whole.name} comes more than once in the subset"
            )
        self.whole, self.indices = whole, chosen
        self.name, self.classes, self.statistics = whole.name, whole.classes, whole.statistics
        self.numbered = whole.numbered
        self.labels = [whole.labels[i] for i in chosen.tolist()]

    @cached_property
    def names(self) -> Sequence[str]:
        """The names that the images have in the whole."""
        names = self.whole.names
        return [names[i] for i in self.indices.tolist()]

    def image(self, index: int) -> Tensor:
        """Decode one image of the subset."""
        return self.whole.image(int(self.indices[index]))

    def stored(self, index: int) -> bytes:
        """An image of the subset as it is stored."""
        return self.whole.stored(int(self.indices[index]))


def balanced_indices(labels: Sequence[int], limit: int) -> list[int]:
    """Indices of `limit` images with as many of each class as can be, the same ones in every run.

    They are taken from the classes in turn, within a class in a fixed random order, so a smaller limit takes a part of
    what a larger one takes, and a class runs out only when all its images are taken.

    Args:
        labels: The label of each image.
        limit: How many to take.

    Returns:
        Increasing indices: `limit` of them, or all where there are no more.
    """
    by_class, turn, _ = _drawn(labels)
    return np.sort(by_class[np.argsort(turn, kind="stable")][:limit]).tolist()


def share_of_each_class(labels: Sequence[int], count: int) -> list[int]:
    """Indices of `count` images, of each class the share that it has among all, the same ones in every run.

    Within a class they are taken in a fixed random order; of a class with n of N images, count·n/N are taken, rounded.

    Args:
        labels: The label of each image.
        count: How many to take.

    Returns:
        Increasing indices: `count` of them, or all where there are no more.
    """
    by_class, turn, sizes = _drawn(labels)
    return np.sort(by_class[np.argsort((turn + 0.5) / sizes, kind="stable")][:count]).tolist()


def _drawn(labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices by class, each class in a fixed random order; which of its class each is; the size of its class."""
    array = np.asarray(labels)
    order = np.random.default_rng(_LIMIT_SEED).permutation(len(array))
    by_class = order[np.argsort(array[order], kind="stable")]
    # The k-th image that was drawn of a class comes before the (k+1)-th of any class.
    _, starts, counts = np.unique(array[by_class], return_index=True, return_counts=True)
    return by_class, np.arange(len(array)) - np.repeat(starts, counts), np.repeat(counts, counts)
