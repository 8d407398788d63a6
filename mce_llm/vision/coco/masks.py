"""Masks as COCO writes them (polygons, run lengths), as pixels, and as the small squares that a mask head gives.

Nothing here knows of files, categories or models.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mce_llm.running.installation import install_hint

try:
    from faster_coco_eval import mask as rle
except ImportError as error:
    raise ImportError(
        f"COCO's masks and scores need faster-coco-eval, which this installs: {install_hint('vision')}"
    ) from error

_POINTS = 3  # a polygon with fewer encloses nothing


def segmentation_problem(segmentation: Any, height: int, width: int) -> str | None:
    """Say why a segmentation is none of COCO's three forms for an image of this size.

    Args:
        segmentation: A list of polygons `[x0, y0, x1, y1, …]`, or `{"size": [h, w], "counts": …}` with the run
            lengths as a list (uncompressed) or as text (compressed).
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        The problem, or None. An empty segmentation is no problem here: see `is_empty`.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
                return "a polygon must be a list of finite numbers"
            if len(polygon) % 2:
                return f"a polygon of {len(polygon)} numbers has no last y"
        return None
    if not isinstance(segmentation, dict) or {"size", "counts"} - segmentation.keys():
        return f"neither polygons nor run lengths: {str(segmentation)[:40]}"
    if list(segmentation["size"]) != [height, width]:
        return f"run lengths of a mask of {list(segmentation['size'])} in an image of {[height, width]}"
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != height * width:
            return f"run lengths must be whole numbers that add up to {height * width}"
    elif not isinstance(counts, (str, bytes)):
        return f"run lengths must be a list or text, got {type(counts).__name__}"
    return None


def is_empty(segmentation: Any) -> bool:
    """Whether a segmentation has no polygon that encloses anything (run lengths are taken at their word)."""
    return isinstance(segmentation, list) and not _enclosing(segmentation)


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The pixels of an instance.

    Args:
        segmentation: In one of COCO's three forms, without a problem.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        uint8 (height, width), 1 inside.
    """
    if isinstance(segmentation, list):
        runs = rle.merge(rle.frPyObjects(_enclosing(segmentation), height, width))
    elif isinstance(segmentation["counts"], list):
        runs = rle.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return np.asarray(rle.decode(runs), dtype=np.uint8)


def mask_to_segmentation(mask: Tensor | np.ndarray) -> dict[str, Any]:
    """Compressed run lengths of a mask (height, width), their counts as text, as JSON wants them."""
    pixels = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask, dtype=np.uint8)
    runs = rle.encode(np.asfortranarray(pixels))
    counts = runs["counts"]
    return {
        "size": [int(side) for side in runs["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def paste_mask(
    probabilities: Tensor, box: Tensor, height: int, width: int, threshold: float = 0.5
) -> torch.Tensor:
    """Put what a mask head says of a box into the image.

    Each pixel whose centre lies in the box gets the probability that bilinear interpolation gives there; beyond the
    outermost cells' centres the values fade to 0, as they do in detectron2's `paste_masks_in_image`. Only the pixels
    around the box are computed.

    Args:
        probabilities: (M, M) float, in the box's own coordinates.
        box: (4,) x0, y0, x1, y1 in pixels of the image.
        height: Rows of the image.
        width: Columns of the image.
        threshold: From which probability on a pixel belongs to the mask.

    Returns:
        bool (height, width).
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    x0, y0, x1, y1 = box.tolist()
    left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
    right, bottom = min(math.ceil(x1) + 1, width), min(math.ceil(y1) + 1, height)
    if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
        return mask
    x = (torch.arange(left, right, dtype=torch.float32) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(top, bottom, dtype=torch.float32) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    values = functional.grid_sample(probabilities[None, None].float(), grid[None], align_corners=False)
    mask[top:bottom, left:right] = values[0, 0] >= threshold
    return mask


def _enclosing(polygons: list[list[float]]) -> list[list[float]]:
    return [polygon for polygon in polygons if len(polygon) >= 2 * _POINTS]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
