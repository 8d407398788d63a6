"""CIFAR-10, CIFAR-100, STL-10 and Imagenette as torchvision stores and downloads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from mce_llm.running.messages import cause
from mce_llm.vision.data.errors import ImageDataError
from mce_llm.vision.data.folders import FolderImages
from mce_llm.vision.data.sources import IMAGENET, ImageSource, Statistics

CIFAR10 = Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
STL10 = Statistics((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713))

SPLITS: dict[str, tuple[str, ...]] = {
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "stl10": ("train", "test", "unlabeled", "train+unlabeled"),
    "imagenette": ("train", "val"),
}
"""Data set → its splits."""

# What torchvision makes in data_dir.
_FOLDERS = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "stl10": "stl10_binary",
    "imagenette": "imagenette2",
}


class ArrayImages(ImageSource):
    """Images of one size that lie in memory anyway.

    Args:
        images: uint8, (n, height, width, 3).
        labels: n of them.
        classes: Their names.
        name: What to call the source.
        statistics: Mean and standard deviation for normalisation.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int],
        classes: Sequence[str],
        name: str,
        statistics: Statistics = IMAGENET,
    ) -> None:
        self._images = torch.from_numpy(np.ascontiguousarray(images))
        self.labels = [int(label) for label in labels]
        self.classes, self.name, self.statistics = list(classes), name, statistics

    @cached_property
    def names(self) -> Sequence[str]:
        """The index of each image as text."""
        return [str(i) for i in range(len(self))]

    def image(self, index: int) -> Tensor:
        """A view into the array; whoever writes to it changes the image for good."""
        return self._images[index].permute(2, 0, 1)


def open_torchvision(dataset: str, split: str, data_dir: str, *, download: bool) -> ImageSource:
    """Open one split of a data set that torchvision knows.

    Args:
        dataset: A key of `SPLITS`.
        split: One of its splits.
        data_dir: torchvision's root.
        download: Fetch it if it is not there.

    Returns:
        The images.

    Raises:
        ImageDataError: It is not there, or damaged, or cannot be downloaded.
    """
    root = Path(data_dir).expanduser()
    place = root / _FOLDERS[dataset]
    try:
        root.mkdir(parents=True, exist_ok=True) if download else None
        return _open(dataset, split, root, download)
    except ImageDataError:
        raise
    except (
        RuntimeError,
        OSError,
        ValueError,
    ) as error:  # what torchvision raises for missing and damaged files
        if download:
            raise ImageDataError(f"{dataset} cannot be downloaded to {root}: {cause(error)}") from error
        state = "is incomplete or damaged" if place.exists() else "is not there"
        raise ImageDataError(
            f"{dataset} was looked for at {place.absolute()}, which {state}; set download: true to fetch it, or data_dir "
            f"to the directory that holds {place.name}"
        ) from error


def _open(dataset: str, split: str, root: Path, download: bool) -> ImageSource:
    name = f"{dataset} ({split})"
    if dataset == "imagenette":
        folder = datasets.Imagenette(root, split=split, download=download)
        names = {wnid: folder._WNID_TO_CLASS[wnid][0] for wnid in folder.wnids}
        return FolderImages(Path(folder._image_root), name, class_names=names)
    if dataset == "stl10":
        stl: Any = datasets.STL10(root, split=split, download=download)
        return ArrayImages(stl.data.transpose(0, 2, 3, 1), stl.labels, stl.classes, name, STL10)
    maker, statistics = (datasets.CIFAR10, CIFAR10) if dataset == "cifar10" else (datasets.CIFAR100, CIFAR100)
    cifar = maker(root, train=split == "train", download=download)
    return ArrayImages(cifar.data, cifar.targets, cifar.classes, name, statistics)
