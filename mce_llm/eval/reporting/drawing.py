"""How the pictures of a report are made: one look, colours that the page can change, SVG for it and PNG beside it.

What is drawn is decided elsewhere. Every colour of a picture is one of `COLOURS`; in the SVG each becomes a variable of
the page's style sheet, so that the same picture is legible on light and on dark ground.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Name of the style sheet's variable → its colour on light ground. All differ, so that each can be told from the others
# in an SVG, and none is pure black, which SVG leaves out. A and B are a blue and a vermilion near those of Okabe and Ito's
# palette, which people tell apart whatever kind of colour vision they have.
COLOURS = {
    "ink": "#1b1f24",
    "muted": "#59636e",
    "grid": "#d8dee4",
    "arm-a": "#0068ad",
    "arm-b": "#b54800",
    "both": "#5f8575",
    "neither": "#b4bac1",
    "run-1": "#007a5a",
    "run-2": "#b0508f",
    "run-3": "#8a6d00",
    "run-4": "#4f6bd8",
    "run-5": "#6e6e78",
    "run-6": "#a8443e",
    "step-1": "#9fbfdc",
    "step-2": "#6fa0cc",
    "step-3": "#4a80b4",
    "step-4": "#2b6098",
    "step-5": "#123f73",
}
COLOURS_ON_DARK = {
    "ink": "#e6edf3",
    "muted": "#9aa5b1",
    "grid": "#2c353f",
    "arm-a": "#5cb0f5",
    "arm-b": "#ff9a4d",
    "both": "#7fb09a",
    "neither": "#56606b",
    "run-1": "#4cc79f",
    "run-2": "#e08cc4",
    "run-3": "#d9b54a",
    "run-4": "#93a7ff",
    "run-5": "#b3b3bd",
    "run-6": "#f08a82",
    "step-1": "#2f5d8c",
    "step-2": "#3f7fb8",
    "step-3": "#5fa3da",
    "step-4": "#93c5ee",
    "step-5": "#d3e9fb",
}
"""The same names on dark ground; the page alone uses them."""
LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.6)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (9, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
"""Line styles that tell the runs of one colour apart."""

_NAMES = {colour: name for name, colour in COLOURS.items()}
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar sign in the name of a run is one
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and set in the page's own font
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
WIDTH, HEIGHT = 4.8, 3.1  # inches: at the width of a phone the text is still of the size that it has here
_DPI = 160
_TITLE_WIDTH = 50  # characters
_LONGEST_NAME = 30


@dataclass(frozen=True)
class Chart:
    """A finished picture.

    Attributes:
        name: Of its PNG file, without `.png`.
        description: What it shows, for those who do not see it.
        svg: An `<svg>` element, coloured by the page's style sheet.
        png: The same picture on white ground.
    """

    name: str
    description: str
    svg: str
    png: bytes


def draw(name: str, description: str, paint: Callable[[Axes], None], height: float = HEIGHT) -> Chart:
    """Draw one picture.

    Args:
        name: Of its PNG file, without `.png`.
        description: What it shows, for those who do not see it.
        paint: Draws into the axes, with colours out of `COLOURS`.
        height: In inches.

    Returns:
        The picture.
    """
    # Letters are as wide as in the font that every matplotlib brings; a seed of its own keeps the ids of two pictures
    # in one page apart, and makes the same picture the same text.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own style is
        matplotlib.rcParams.update({**_STYLE, "font.family": "DejaVu Sans", "svg.hashsalt": name})
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        paint(axes)
        _title_over_all(figure, axes)
        vector, pixels = io.StringIO(), io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with warnings.catch_warnings():
            # The page sets names in whatever font has their letters; only the PNG shows boxes in place of them.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(vector, format="svg", metadata=nothing)
            figure.set_layout_engine("none")  # it is laid out by now
            figure.savefig(pixels, format="png", dpi=_DPI, facecolor="white")
    return Chart(name, description, _for_page(vector.getvalue(), description), pixels.getvalue())


def _title_over_all(figure: Figure, axes: Axes) -> None:
    """Begin the title at the edge of the picture: beside long names the axes are too narrow for it."""
    title = axes.get_title(loc="left")
    axes.set_title("", loc="left")
    if title:
        figure.suptitle(
            "\n".join(textwrap.fill(line, _TITLE_WIDTH) for line in title.split("\n")),
            x=0.012,
            horizontalalignment="left",
            size=_STYLE["axes.titlesize"],
            weight=_STYLE["axes.titleweight"],
            color=_STYLE["axes.titlecolor"],
        )


def _for_page(svg: str, description: str) -> str:
    """The element alone: colours as variables, letters in the page's font, and no id that nothing refers to."""
    element = svg[svg.index("<svg ") :].strip()
    size = re.search(r'viewBox="([\d. ]+)"', element)
    assert size is not None
    inside = element[element.index(">") + 1 :]
    inside = re.sub(
        r"<style.*?</style>", "", inside, count=1, flags=re.DOTALL
    )  # would hold for the whole page
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)
    inside = re.sub(r'style="[^"]*"', _restyled, inside)
    return f'<svg viewBox="{size[1]}" role="img" aria-label={quoteattr(description)}>{inside}'


def _restyled(found: re.Match[str]) -> str:
    style = re.sub(r"font-family:[^;\"]*;?", "", found[0])
    return re.sub(r"#[0-9a-f]{6}", lambda colour: f"var(--{_NAMES[colour[0]]})", style)


def short(name: str) -> str:
    """A name that fits beside a picture: the middle of a long one is left out."""
    if len(name) <= _LONGEST_NAME:
        return name
    kept = _LONGEST_NAME // 2
    return f"{name[:kept]}…{name[1 - kept :]}"


def legend_below(axes: Axes, most_columns: int, **options: Any) -> None:
    """Put the names of what is drawn below a picture, in as many columns as its width has room for.

    Args:
        axes: Of a figure whose layout is constrained.
        most_columns: Where there is room.
        options: Of matplotlib's legend.
    """
    for columns in range(most_columns, 0, -1):
        legend = axes.figure.legend(loc="outside lower center", ncols=columns, **options)
        if columns == 1 or legend.get_window_extent().width <= axes.figure.bbox.width:
            return
        legend.remove()


def power_of_ten(value: float, _: float = 0) -> str:
    """10⁻³ for 0.001: a label of a logarithmic axis, without the markup that screen readers spell out."""
    exponent = f"{value:e}".partition("e")[2]
    return "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
