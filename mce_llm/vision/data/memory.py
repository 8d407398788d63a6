"""Images kept in memory as they are decoded, once, before the first epoch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mce_llm.vision.data.announcing import announce, is_main_process
from mce_llm.vision.data.sources import ImageSource

AUTO_LIMIT_BYTES = 10**9
_SAMPLE = 64


class ImagesInMemory(ImageSource):
    """All images of another source, decoded, in one block of memory that forked workers share.

    Args:
        source: Where they come from.

    Raises:
        CorruptImageError: One cannot be decoded.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.name, self.classes, self.labels = source.name, source.classes, source.labels
        self.statistics, self.numbered = source.statistics, source.numbered
        shapes = np.empty((len(source), 2), np.int64)
        starts = np.zeros(len(source) + 1, np.int64)
        block = torch.empty(estimated_bytes(source), dtype=torch.uint8)
        numbers = tqdm(
            range(len(source)),
            desc=f"decoding {source.name}",
            unit="image",
            leave=False,
            delay=2,
            disable=not is_main_process() or not sys.stderr.isatty(),
        )
        for i in numbers:
            image = source.image(i)
            shapes[i] = image.shape[1:]
            starts[i + 1] = end = starts[i] + image.numel()
            if end > len(block):
                larger = torch.empty(max(int(end), len(block) * 5 // 4), dtype=torch.uint8)
                larger[: starts[i]] = block[: starts[i]]
                block = larger
            # The colours of a pixel stay side by side: torchvision resizes that layout several times as fast.
            block[starts[i] : end] = image.permute(1, 2, 0).reshape(-1)
        self._block, self._starts, self._shapes = block, starts, shapes

    @property
    def names(self) -> Sequence[str]:
        """Those of the source."""
        return self.source.names

    def stored(self, index: int) -> bytes:
        """An image of the source as it is stored."""
        return self.source.stored(index)

    def image(self, index: int) -> Tensor:
        """A view into the block; whoever writes to it changes the image for good."""
        start, end = self._starts[index], self._starts[index + 1]
        height, width = self._shapes[index]
        return self._block[start:end].view(int(height), int(width), 3).permute(2, 0, 1)


def estimated_bytes(source: ImageSource) -> int:
    """How many bytes the decoded images take, judged by some of them spread over the source."""
    places = np.unique(np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(int))
    sizes = [source.image(int(i)).numel() for i in places]
    return int(np.ceil(np.mean(sizes) * len(source)))


def keep_in_memory(source: ImageSource, choice: str) -> ImageSource:
    """Keep decoded images in memory where that was asked for, or is small enough.

    Args:
        source: The images.
        choice: `true`, `false`, or `auto`: if they take up to 1 GB, and no more than a quarter of what is free.

    Returns:
        The source itself or the images in memory.
    """
    if choice == "false":
        return source
    size = estimated_bytes(source)
    if choice == "auto":
        most = min(AUTO_LIMIT_BYTES, _free_bytes() // 4)
        if size > most:
            announce(
                f"{source.name}: decoded in each epoch; about {size / 1e9:.2g} GB decoded is more than cache_images: auto "
                f"keeps in memory ({most / 1e9:.2g} GB)"
            )
            return source
    announce(
        f"{source.name}: decoded images kept in memory, about {size / 1e6:,.0f} MB (cache_images: {choice})"
    )
    return ImagesInMemory(source)


def _free_bytes() -> int:
    """Memory that can be had without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
