"""The grid of augmented views: what the network is asked to find the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mce_llm.vision.drawing.style import MUTED, WIDTH, look, new_figure

_MARGIN = 0.25  # inches for the titles


@dataclass(frozen=True)
class ViewRow:
    """An image and what was drawn from it.

    Attributes:
        original: uint8, (3, height, width).
        draws: For each draw, its views, each float (3, size, size), normalised.
        label: Its class, or an empty text.
    """

    original: Tensor
    draws: Sequence[Sequence[Tensor]]
    label: str = ""


def draw_views(rows: Sequence[ViewRow], mean: Sequence[float], std: Sequence[float]) -> Figure:
    """A row for each image: the image, then the views of each draw.

    Args:
        rows: The images; all with as many draws and views.
        mean: Of each channel, in [0, 1], that the views were normalised with.
        std: Of each channel.

    Returns:
        The figure.

    Raises:
        ValueError: There are no rows, or they have different numbers of views.
    """
    shapes = {tuple(len(draw) for draw in row.draws) for row in rows}
    if len(shapes) != 1 or not (counts := shapes.pop()):
        raise ValueError(f"rows must be alike and not empty, got draws of {sorted(shapes)} views")
    titles = ["original"] + [
        f"view {view + 1}" for draw in range(len(counts)) for view in range(counts[draw])
    ]
    # A narrow gap sets the draws apart.
    widths = [1.0, *(w for count in counts for w in (0.12, *[1.0] * count))]
    cell = WIDTH / sum(widths)
    with look():
        figure = new_figure(len(rows) * cell + _MARGIN)
        grid = figure.add_gridspec(len(rows), len(widths), width_ratios=widths)
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore[call-arg]
        columns = [place for place, width in enumerate(widths) if width == 1.0]
        for number, row in enumerate(rows):
            images = [row.original, *(_pixels(v, mean, std) for draw in row.draws for v in draw)]
            for place, image, title in zip(columns, images, titles, strict=True):
                axes = figure.add_subplot(grid[number, place])
                # Small images are enlarged without smoothing, so that their pixels are seen as they are.
                axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="equal")
                axes.set_axis_off()
                if number == 0:
                    axes.set_title(title, loc="center", fontsize=9, fontweight="normal", color=MUTED)
                if place == 0 and row.label:
                    axes.text(
                        -0.06, 0.5, row.label, transform=axes.transAxes, rotation=90, va="center", ha="right", fontsize=9
                    )  # fmt: skip
    return figure


def _pixels(view: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The view as uint8, its normalisation undone."""
    scale, shift = (torch.tensor(values, dtype=view.dtype).view(-1, 1, 1) for values in (std, mean))
    return ((view * scale + shift).clamp(0, 1) * 255).round().to(torch.uint8)
