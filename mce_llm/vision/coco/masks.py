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
from mce_llm.vision.coco.records import MOST_PIXELS, are_near, is_number, shown

try:
    from faster_coco_eval import mask as rle
except ImportError as error:
    raise ImportError(
        f"COCO's masks and scores need faster-coco-eval, which this installs: {install_hint('vision')}"
    ) from error

_POINTS = 3  # a polygon with fewer encloses nothing
_FIRST_CHARACTER = 48  # of compressed run lengths
_MOST_CHARACTERS = 8  # of one number: 40 bits


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
        if segmentation and is_number(segmentation[0]):
            return "one polygon, where a list of polygons must be: [[x0, y0, x1, y1, …]]"
        for polygon in segmentation:
            if not isinstance(polygon, list):
                return f"a polygon must be a list of finite numbers, got {shown(polygon)}"
            if not are_near(polygon):
                if all(is_number(value) for value in polygon):
                    return f"a polygon reaches further than {MOST_PIXELS:,} pixels from its image"
                return f"a polygon must be a list of finite numbers, got {shown(polygon)}"
            if len(polygon) % 2:
                return f"a polygon of {len(polygon)} numbers has no last y"
        return None
    if not isinstance(segmentation, dict) or {"size", "counts"} - segmentation.keys():
        return f"neither polygons nor run lengths: {shown(segmentation)}"
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list) or size != [height, width] or set(map(type, size)) != {int}:
        return f"run lengths of a mask of {shown(size)} in an image of {[height, width]} (height, width)"
    if isinstance(counts, list):
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts)
        if not whole or sum(counts) != height * width:
            return f"run lengths must be whole numbers that add up to {height * width}"
        return None
    if not isinstance(counts, str):
        return f"run lengths must be a list or text, got {type(counts).__name__}"
    runs = _run_lengths(counts)
    if runs is None:
        return f"run lengths that are no compressed text of COCO's, or end in the middle: {shown(counts)}"
    if (runs < 0).any() or int(runs.sum()) != height * width:
        return f"compressed run lengths must add up to {height * width}, got {int(runs.sum())}; they were cut short or changed"
    return None


def is_empty(segmentation: Any) -> bool:
    """Whether a segmentation without a problem has no polygon that encloses anything, or run lengths of no pixel."""
    if isinstance(segmentation, list):
        return not _enclosing(segmentation)
    counts = segmentation["counts"]
    return sum(counts[1::2]) == 0 if isinstance(counts, list) else not rle.area(segmentation)


def is_outside(segmentation: Any, height: int, width: int) -> bool:
    """Whether all polygons of a segmentation lie beside an image of this size (run lengths never do)."""
    return isinstance(segmentation, list) and not any(
        min(polygon[::2]) < width
        and max(polygon[::2]) > 0
        and min(polygon[1::2]) < height
        and max(polygon[1::2]) > 0
        for polygon in _enclosing(segmentation)
    )


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
        polygons = _enclosing(segmentation)
        if not polygons:
            return np.zeros((height, width), dtype=np.uint8)
        runs = rle.merge(rle.frPyObjects(polygons, height, width))
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


def _run_lengths(text: str) -> np.ndarray | None:
    """Read COCO's compressed run lengths; None where the text has other characters or ends within a number.

    A number is written in characters of 5 bits, the least first, with a bit that says whether more follow; the last
    one's highest bit is the sign. From the fourth number on, the one two places before is to be added.
    """
    try:
        digits = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    except UnicodeEncodeError:
        return None
    if not digits.size or digits.min() < 0 or digits.max() >= 64:
        return None
    last = digits & 32 == 0
    if not last[-1]:
        return None
    ends = np.flatnonzero(last)
    begins = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - begins + 1
    if lengths.max() > _MOST_CHARACTERS:
        return None
    within = np.arange(digits.size) - np.repeat(begins, lengths)
    values = np.add.reduceat((digits & 31) << (5 * within), begins)
    values -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):  # numbers 1, 3, 5, … and 2, 4, 6, … are sums
        values[first::2] = np.cumsum(values[first::2])
    return values
