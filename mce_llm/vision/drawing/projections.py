"""Features in two dimensions: principal components, t-SNE where scikit-learn is there, and the scatter plot of either."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.figure import Figure
from torch import Tensor

from mce_llm.errors import MceLlmError
from mce_llm.vision.drawing.style import COLOURS, MARKERS, MUTED, WIDTH, look, new_figure

_PCA_ITERATIONS = 4  # of subspace iteration: the first two components are then exact to what can be seen
_NAME_WIDTH, _NAME_HEIGHT = 0.1, 0.04  # of a class beside its points, in shares of the axes
_TSNE_COMPONENTS = 50  # features are reduced to as many first, as is usual


class TsneUnavailableError(MceLlmError, RuntimeError):
    """scikit-learn is not installed."""


class Projection(NamedTuple):
    """Points in the plane.

    Attributes:
        points: (n, 2).
        axes: What the two axes are called.
    """

    points: Tensor
    axes: tuple[str, str]


def principal_components(features: Tensor, seed: int = 0) -> Projection:
    """The two directions of greatest variance, by `torch.pca_lowrank`.

    Args:
        features: (n, d), n ≥ 3.
        seed: Of the randomised method.

    Returns:
        The points, with each direction's share of the variance in the axes' names.

    Raises:
        ValueError: There are fewer than three rows, or fewer than two columns.
    """
    if features.ndim != 2 or len(features) < 3 or features.shape[1] < 2:
        raise ValueError(
            f"principal components need at least 3 rows and 2 columns, got {tuple(features.shape)}"
        )
    points, values = _components(features.double(), 2, seed)
    centred = features.double() - features.double().mean(dim=0)
    total = float(centred.square().sum())
    shares = [float(value) ** 2 / total if total else 0.0 for value in values]
    return Projection(points.float(), (f"component 1 ({shares[0]:.0%})", f"component 2 ({shares[1]:.0%})"))


def tsne(features: Tensor, seed: int = 0) -> Projection:
    """t-SNE of the features, after principal components, by scikit-learn.

    Args:
        features: (n, d), n ≥ 3.
        seed: Of its beginning.

    Returns:
        The points.

    Raises:
        TsneUnavailableError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise TsneUnavailableError(
            "t-SNE is scikit-learn's, which is not installed (pip install scikit-learn)"
        )
    from sklearn.manifold import TSNE

    reduced = features.double()
    if (most := min(_TSNE_COMPONENTS, *features.shape)) < features.shape[1]:
        reduced = _components(reduced, most, seed)[0]
    # It must be below the number of points; 30 is its usual value.
    perplexity = min(30.0, (len(features) - 1) / 3)
    method = TSNE(init="pca", learning_rate="auto", perplexity=perplexity, random_state=seed)
    points = torch.from_numpy(np.asarray(method.fit_transform(reduced.numpy()), dtype=np.float32))
    return Projection(points, ("", ""))


def draw_projection(
    projection: Projection, labels: Sequence[int], classes: Sequence[str], title: str = ""
) -> Figure:
    """A point for each image, with a colour and a shape for each class (of up to 20), and a legend.

    Where classes lie apart, each one's name stands at the middle of its points as well.

    Args:
        projection: The points.
        labels: The class of each; −1 for none, which is drawn in grey.
        classes: Their names.
        title: What it shows.

    Returns:
        The figure.

    Raises:
        ValueError: There are not as many labels as points.
    """
    points = projection.points
    if len(points) != len(labels):
        raise ValueError(f"there are {len(points)} points and {len(labels)} labels")
    there = sorted(set(labels))
    # Points of many classes lie over each other: none should always be on top, so they are drawn in a mixed order.
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0)).tolist()
    size = max(7.0, min(26.0, 16000 / max(1, len(points))))
    with look():
        figure = new_figure(WIDTH * 0.62)
        axes = figure.add_subplot()
        for marker in sorted({_marker(label) for label in there}):
            chosen = [place for place in order if _marker(labels[place]) == marker]
            axes.scatter(
                points[chosen, 0].numpy(),
                points[chosen, 1].numpy(),
                s=size,
                marker=marker,
                c=[_colour(labels[place]) for place in chosen],
                alpha=0.75,
                linewidths=0,
            )
        for label in there:
            name = classes[label] if label >= 0 else "no label"
            axes.scatter([], [], marker=_marker(label), c=_colour(label), s=28, label=name)
        middles = _middles(points, labels)
        if _apart(list(middles.values()), points):
            for label, (x, y) in middles.items():
                axes.annotate(
                    classes[label],
                    (x, y),
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    fontweight="bold",
                    path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
                )
        axes.set(xlabel=projection.axes[0], ylabel=projection.axes[1], xticks=[], yticks=[])
        axes.set_title(title)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=math.ceil(len(there) / 22))
    return figure


def _components(features: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Coordinates along the first directions, (n, count), each with its larger side positive; and singular values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rank = min(count + 6, *features.shape)
        u, values, _ = torch.pca_lowrank(features, q=rank, niter=_PCA_ITERATIONS)
    points = u[:, :count] * values[:count]
    largest = points.gather(0, points.abs().argmax(dim=0, keepdim=True))
    return points * torch.where(largest < 0, -1.0, 1.0), values[:count]


def _middles(points: Tensor, labels: Sequence[int]) -> dict[int, tuple[float, float]]:
    """The median of the points of each class."""
    classes = torch.tensor(labels)
    found = {
        label: points[classes == label].median(dim=0).values for label in sorted(set(labels)) if label >= 0
    }
    return {label: (float(middle[0]), float(middle[1])) for label, middle in found.items()}


def _apart(middles: Sequence[tuple[float, float]], points: Tensor) -> bool:
    """Whether no two names at these places would cover each other."""
    width, height = (points.max(dim=0).values - points.min(dim=0).values).tolist()
    return not any(
        abs(a[0] - b[0]) < _NAME_WIDTH * width and abs(a[1] - b[1]) < _NAME_HEIGHT * height
        for a, b in combinations(middles, 2)
    )


def _colour(label: int) -> str:
    return COLOURS[label % len(COLOURS)] if label >= 0 else MUTED


def _marker(label: int) -> str:
    return MARKERS[label % len(MARKERS)] if label >= 0 else "."
