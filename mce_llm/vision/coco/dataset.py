"""Images and targets as tensors: decoding, multi-scale resizing and flipping, a function of (seed, epoch, index) alone.

Which images make a batch is decided in `batches`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from mce_llm.vision.coco.annotations import CocoAnnotations
from mce_llm.vision.coco.errors import CocoDataError
from mce_llm.vision.coco.images import CocoImage, orientation_problem
from mce_llm.vision.coco.masks import segmentation_to_mask
from mce_llm.vision.data import CorruptImageError, decoding

Target = dict[str, Tensor]


def read_image(image: CocoImage) -> Tensor:
    """Decode an image of a COCO data set: the pixels as they are stored, or upright, as its annotations have them.

    Args:
        image: Which one.

    Returns:
        uint8 (3, height, width).

    Raises:
        CocoDataError: It cannot be decoded, or has another size than the annotations say.
    """
    try:
        pixels = decoding.read_image(image.path, upright=image.upright)
        if tuple(pixels.shape[1:]) == (image.height, image.width):
            return pixels
        hint = orientation_problem(image, decoding.read_header(image.path))
    except CorruptImageError as error:
        raise CocoDataError(str(error)) from error
    raise CocoDataError(
        f"{image.path} has {pixels.shape[1]} × {pixels.shape[2]} pixels, but its annotation says {image.height} × "
        f"{image.width} (height × width)" + (f"; it is an {hint}" if hint else "")
    )


def scaled_size(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """The size at which the short side is `short_side`, or smaller where the long one would exceed `max_size`.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        short_side: What the shorter of them is to become.
        max_size: What the longer of them may become.

    Returns:
        Height and width, at least 1 each.
    """
    scale = min(short_side / min(height, width), max_size / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


class TrainingImages(Dataset[tuple[Tensor, Target]]):
    """Images to train on. `self[epoch, index]` is the same in every process, whatever was asked for before.

    An item is the image, uint8 (3, H, W), and its target: `boxes` float32 (N, 4) as corners, `labels` int64 (N,) from
    1 on, `masks` uint8 (N, H, W). N is 0 for an image without instances.

    Args:
        annotations: What is in the images.
        seed: Of the run.
        short_sides: One of these is drawn as the length of the short side.
        max_size: Longest long side.
        flip_probability: Of a horizontal flip.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        *,
        seed: int,
        short_sides: Sequence[int],
        max_size: int,
        flip_probability: float,
    ) -> None:
        self._annotations = annotations
        self._seed = seed
        self._short_sides = list(short_sides)
        self._max_size = max_size
        self._flip_probability = flip_probability

    def __len__(self) -> int:
        return len(self._annotations.images)

    def __getitem__(self, where: tuple[int, int]) -> tuple[Tensor, Target]:
        epoch, index = where
        record = self._annotations.images[index]
        draw = np.random.default_rng([self._seed, epoch, index])
        short_side = self._short_sides[int(draw.integers(len(self._short_sides)))]
        flip = draw.random() < self._flip_probability
        image: Tensor = tv_tensors.Image(read_image(record))
        boxes, labels, masks = self._target(index)
        size = list(scaled_size(record.height, record.width, short_side, self._max_size))
        image, boxes, masks = (_resized(item, size) for item in (image, boxes, masks))
        if flip:
            image, boxes, masks = (transforms.horizontal_flip(item) for item in (image, boxes, masks))
        return image.as_subclass(Tensor), {
            "boxes": boxes.as_subclass(Tensor),
            "labels": labels,
            "masks": masks.as_subclass(Tensor),
        }

    def _target(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        record = self._annotations.images[index]
        instances = self._annotations.instances[index]
        size = (record.height, record.width)
        boxes = torch.tensor([i.box for i in instances], dtype=torch.float32).reshape(-1, 4)
        masks = np.zeros((len(instances), *size), dtype=np.uint8)
        for row, instance in enumerate(instances):
            masks[row] = segmentation_to_mask(instance.segmentation, *size)
        return (
            tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            torch.tensor([i.label for i in instances], dtype=torch.int64),
            tv_tensors.Mask(torch.from_numpy(masks)),
        )


class EvaluationImages(Dataset[tuple[Tensor, int]]):
    """Images to be judged on: each at the one evaluation size, and its position among the annotations' images.

    Args:
        annotations: Which images.
        short_side: Length of the short side.
        max_size: Longest long side.
        positions: Which of the images, for this process; all where it is None.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        *,
        short_side: int,
        max_size: int,
        positions: Sequence[int] | None = None,
    ) -> None:
        self._annotations = annotations
        self._short_side = short_side
        self._max_size = max_size
        self._positions = list(range(len(annotations.images)) if positions is None else positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        position = self._positions[index]
        record = self._annotations.images[position]
        size = scaled_size(record.height, record.width, self._short_side, self._max_size)
        return _resized(read_image(record), list(size)), position


def as_lists(items: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Collate by putting nothing together: images of a batch differ in size."""
    return [first for first, _ in items], [second for _, second in items]


def _resized(item: Any, size: list[int]) -> Any:
    """Resize bilinearly with antialiasing, masks by the nearest pixel; no instances have nothing to resize."""
    if isinstance(item, tv_tensors.Mask) and not len(item):
        return tv_tensors.Mask(torch.zeros(0, *size, dtype=torch.uint8))
    return transforms.resize(item, size, antialias=True)
