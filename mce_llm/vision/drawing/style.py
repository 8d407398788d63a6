"""One look for all pictures, colours that people tell apart whatever their colour vision, and how a figure becomes a file.

Figures are made without pyplot, so nothing is left in its global state, and the user's own style does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mce_llm.running.files import whole_file

DPI = 150
"""Dots per inch of every picture."""

WIDTH = 8.0  # inches: 1200 pixels, shown at two thirds of that in a page of documentation
INK, MUTED, GRID = "#1b1f24", "#59636e", "#d8dee4"
# Petroff, "Accessible color sequences for data visualization", arXiv 2107.02270: ten colours.
COLOURS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
# With the colours, 20 pairs: whoever cannot tell two colours apart sees another shape.
MARKERS = ("o", "^", "s", "X")
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names may have dollar signs
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
}


@contextmanager
def look() -> Iterator[None]:
    """What is drawn inside looks like the rest; what is drawn after it, as before."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure; inches. To be used inside `look`."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, in one move.

    Args:
        figure: What to write.
        path: The file; its folder is made.
    """
    with whole_file(path) as beside, look():
        figure.savefig(beside, format="png", dpi=DPI)
