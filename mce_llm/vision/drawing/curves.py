"""How a run went: loss, accuracies and the measures of collapse over the epochs."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mce_llm.vision.drawing.measurements import Journal
from mce_llm.vision.drawing.style import COLOURS, look, new_figure

# title, then (name in the journal, what it is called in the legend) of each line
PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("loss", (("train/loss", "loss"),)),
    ("accuracy", (("monitor/knn_top1", "kNN"), ("train/probe_top1", "online probe"))),
    (
        "effective rank",
        (("monitor/effective_rank", "features"), ("monitor/embedding_effective_rank", "embeddings")),
    ),
    ("RankMe", (("monitor/rankme", "features"),)),
    ("α-ReQ", (("monitor/alpha_req", "features"),)),
    ("learning rate", (("train/learning_rate", "learning rate"),)),
)
_COLUMNS = 3
_ROW_HEIGHT = 2.3
_MARKED_BELOW = 30  # points; of more, the line alone is shown
_ROOM_FOR_LEGEND = 0.2  # of the panel, above its lines
_LINES = ("-", (0, (5, 1.6)))


def draw_curves(journal: Journal) -> Figure:
    """A panel for each measure that the journal has.

    Args:
        journal: The measurements.

    Returns:
        The figure.

    Raises:
        ValueError: It has none of them.
    """
    panels = [
        (title, [(name, label) for name, label in lines if name in journal.series]) for title, lines in PANELS
    ]
    panels = [(title, lines) for title, lines in panels if lines]
    if not panels:
        raise ValueError("the journal has nothing to draw")
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with look():
        figure = new_figure(rows * _ROW_HEIGHT)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for place, (axes, (title, lines)) in enumerate(zip(grid.flat, panels, strict=False)):
            _draw_panel(axes, title, lines, journal)
            if place + columns >= len(panels):
                axes.set_xlabel(journal.unit)
    return figure


def _draw_panel(axes: Axes, title: str, lines: list[tuple[str, str]], journal: Journal) -> None:
    for number, (name, label) in enumerate(lines):
        where, values = zip(*journal.series[name], strict=True)
        axes.plot(
            where,
            values,
            color=(COLOURS[0], COLOURS[6])[number],
            linestyle=_LINES[number],
            label=label,
            marker="o" if len(values) < _MARKED_BELOW else None,
            markersize=3,
        )
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if title == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if len(lines) > 1:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + _ROOM_FOR_LEGEND * (high - low))
        axes.legend(
            loc="upper center", ncols=2, fontsize=8, handlelength=1.8, columnspacing=1.2, borderpad=0.2
        )
