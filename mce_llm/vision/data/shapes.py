"""Images of drawn shapes, made on the spot: enough to try a whole pipeline on, with no file and no download.

Ten classes, told apart by outline alone: grey levels, place, size, angle and the background say nothing about the class.
There is no colour, because of two views of one image an encoder would then learn the colours and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mce_llm.vision.data.sampling import sample_seed
from mce_llm.vision.data.sources import ImageSource, Statistics

CLASSES = ("disc", "ring", "square", "frame", "triangle", "pentagon", "cross", "star", "moon", "bar")
COUNTS = {"train": 10_000, "test": 2_000}
"""Split → how many images it has."""

STATISTICS = Statistics((0.5, 0.5, 0.5), (0.29, 0.29, 0.29))  # of the training split
_SEED = 414
_SMALLEST_CONTRAST = 0.35
_LARGEST_ANGLE = 0.3  # radians: an outline that may be turned any way takes far longer to learn


class Shapes(ImageSource):
    """Generated images; image i of a split is the same in every run.

    Args:
        split: `train` or `test`; no image of one is in the other, as they are drawn from other seeds.
        size: Side of the images in pixels.
    """

    def __init__(self, split: str, size: int) -> None:
        self.name, self.size = f"shapes ({split})", size
        self.classes, self.statistics = list(CLASSES), STATISTICS
        self.labels = [i % len(CLASSES) for i in range(COUNTS[split])]
        self._split = list(COUNTS).index(split)
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
        self._x, self._y = axis[None, :], axis[:, None]

    @cached_property
    def names(self) -> Sequence[str]:
        """The index of each image as text."""
        return [str(i) for i in range(len(self))]

    def image(self, index: int) -> Tensor:
        """Draw one image.

        Args:
            index: Which one.

        Returns:
            RGB as uint8, (3, size, size), its channels equal.
        """
        random = np.random.default_rng(sample_seed(_SEED, self._split, index))
        background, shade = _shades(random)
        canvas = background + _texture(random, self._x, self._y)
        angle = random.uniform(-_LARGEST_ANGLE, _LARGEST_ANGLE)
        radius = random.uniform(0.6, 0.8)
        middle = random.uniform(radius - 1, 1 - radius, size=2).astype(np.float32)
        x, y = self._x - middle[0], self._y - middle[1]
        cosine, sine = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
        distance = _distance(self.labels[index], cosine * x + sine * y, cosine * y - sine * x) * radius
        # One pixel's width of transition at the outline.
        inside = np.clip(0.5 - distance * (self.size / 2), 0, 1)
        canvas += inside * (shade - canvas)
        canvas += random.normal(0, 0.02, canvas.shape).astype(np.float32)
        pixels = torch.from_numpy((np.clip(canvas, 0, 1) * 255).round().astype(np.uint8))
        return pixels.expand(3, -1, -1).clone()


def _shades(random: np.random.Generator) -> np.ndarray:
    """Two grey levels that can be told apart."""
    while True:
        shades = random.uniform(0.05, 0.95, size=2).astype(np.float32)
        if abs(shades[0] - shades[1]) > _SMALLEST_CONTRAST:
            return shades


def _texture(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two waves of random direction, length and strength."""
    angles, phases = random.uniform(0, 2 * np.pi, size=(2, 2))
    lengths, heights = random.uniform(2, 12, size=2), random.uniform(0, 0.03, size=2)
    waves = [
        np.float32(height)
        * np.sin(np.float32(length * np.cos(a)) * x + np.float32(length * np.sin(a)) * y + np.float32(phase))
        for a, phase, length, height in zip(angles, phases, lengths, heights, strict=True)
    ]
    return waves[0] + waves[1]


def _distance(label: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a shape of radius 1 (negative inside), or a bound that is as good there."""
    name = CLASSES[label]
    if name == "disc":
        return np.hypot(x, y) - 0.85
    if name == "ring":
        return np.abs(np.hypot(x, y) - 0.75) - 0.2
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.7
    if name == "frame":
        return np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.58) - 0.14
    if name == "triangle":
        return _polygon(x, y, 3, 0.5)
    if name == "pentagon":
        return _polygon(x, y, 5, 0.75)
    if name == "cross":
        return np.minimum(_box(x, y, 0.95, 0.28), _box(x, y, 0.28, 0.95))
    if name == "star":
        return _star(x, y)
    if name == "moon":
        return np.maximum(np.hypot(x, y) - 0.9, 0.75 - np.hypot(x - 0.5, y))
    return _box(x, y, 0.98, 0.25)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _polygon(x: np.ndarray, y: np.ndarray, sides: int, inner_radius: float) -> np.ndarray:
    """A regular polygon: the greatest of the distances to the lines through its sides."""
    angles = 2 * np.pi * np.arange(sides) / sides
    lines = [np.float32(np.cos(a)) * x + np.float32(np.sin(a)) * y for a in angles]
    return np.maximum.reduce(lines) - inner_radius


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: in each of its ten sectors, the line from a tip (radius 1) to an inner corner (radius 0.4)."""
    half = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(y, x) + half, 2 * half) - half)
    radius = np.hypot(x, y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    corner = (0.4 * np.cos(half), 0.4 * np.sin(half))
    normal = np.array([corner[1], 1 - corner[0]]) / np.hypot(corner[1], 1 - corner[0])
    return ((u - 1) * normal[0] + v * normal[1]).astype(np.float32)
