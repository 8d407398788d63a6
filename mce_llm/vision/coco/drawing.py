"""Detections as pictures: masks, boxes, names and scores on the image, and a sheet of several."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import torch
from matplotlib import font_manager
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

_GOLDEN = 0.618034  # steps of the hue circle that keep neighbours apart
_TILE = 480


def draw_detections(
    image: Tensor, prediction: Mapping[str, Tensor], class_names: Sequence[str], threshold: float = 0.5
) -> Tensor:
    """Draw what was found.

    Args:
        image: uint8 (3, H, W).
        prediction: `boxes` (R, 4) as corners in pixels, `labels` (R,) from 1 on, `scores` (R,), and, where there are
            masks, `masks` bool (R, H, W).
        class_names: Name of labels 1, 2, ….
        threshold: Detections with lower scores are left out.

    Returns:
        uint8 (3, H, W), a new tensor.
    """
    keep = torch.where(prediction["scores"] >= threshold)[0]
    if not len(keep):
        return image.clone()
    boxes, scores, labels = (prediction[name][keep].cpu() for name in ("boxes", "scores", "labels"))
    colors = [_color(int(label)) for label in labels]
    drawn = image
    if "masks" in prediction:
        drawn = draw_segmentation_masks(
            drawn, prediction["masks"][keep].cpu().bool(), alpha=0.45, colors=colors
        )
    return draw_bounding_boxes(
        drawn,
        boxes,
        labels=[
            f"{class_names[int(n) - 1]} {100 * float(s):.0f}%" for n, s in zip(labels, scores, strict=True)
        ],
        colors=colors,
        width=2,
        font=font_manager.findfont("DejaVu Sans"),
        font_size=14,
    )


def sheet(images: Sequence[Tensor], columns: int = 3) -> Tensor:
    """Put images of different sizes side by side, each scaled to fit into the middle of a square.

    Args:
        images: uint8 (3, H, W) each, at least one.
        columns: How many in a row.

    Returns:
        uint8 (3, H, W).
    """
    tiles = []
    for image in images:
        scale = _TILE / max(image.shape[1:])
        size = [max(round(side * scale), 1) for side in image.shape[1:]]
        tile = torch.full((3, _TILE, _TILE), 255, dtype=torch.uint8)
        top, left = (_TILE - size[0]) // 2, (_TILE - size[1]) // 2
        tile[:, top : top + size[0], left : left + size[1]] = transforms.resize(image, size, antialias=True)
        tiles.append(tile)
    return make_grid(torch.stack(tiles), nrow=min(columns, len(tiles)), padding=8, pad_value=255)


def _color(label: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((label * _GOLDEN) % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
