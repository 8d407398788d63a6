"""Singular values over the epochs: how many directions features use, and whether they collapse.

After Jing et al., "Understanding dimensional collapse in contrastive self-supervised learning", arXiv 2110.09348.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mce_llm.vision.drawing.measurements import EpochSpectrum
from mce_llm.vision.drawing.style import look, new_figure

_MOST_LINES = 8
_FLOOR = 1e-6  # of the largest: below it float32 features have nothing but rounding
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PANELS = (
    ("encoder", "encoder_rank", "features of the encoder"),
    ("embedding", "embedding_rank", "embeddings (projector)"),
)


def draw_spectra(spectra: Sequence[EpochSpectrum]) -> Figure:
    """σ_i/σ_1 on a logarithmic axis, a line for each epoch, a panel each for features and embeddings.

    Of more than eight epochs, eight are drawn, evenly apart, the first and the last among them. The legend has the
    effective rank after each.

    Args:
        spectra: In the order of their epochs.

    Returns:
        The figure.

    Raises:
        ValueError: There are none.
    """
    if not spectra:
        raise ValueError("there are no spectra to draw")
    shown = evenly(spectra, _MOST_LINES)
    with look():
        figure = new_figure(4.4)
        panels = figure.subplots(1, len(_PANELS), sharey=True)
        for axes, (values_name, rank_name, title) in zip(panels, _PANELS, strict=True):
            for number, spectrum in enumerate(shown):
                shares = normalised(getattr(spectrum, values_name))
                axes.plot(
                    range(1, len(shares) + 1),
                    [share if share >= _FLOOR else math.nan for share in shares],
                    color=_colour(number, len(shown)),
                    label=_legend(spectrum.epoch, getattr(spectrum, rank_name)),
                    marker="o" if len(shares) < 3 else None,
                )
            _dress(axes, title)
        panels[0].set_ylabel("σᵢ / σ₁")
    return figure


def normalised(values: Sequence[float]) -> list[float]:
    """Singular values over the largest; zeros where that is zero."""
    largest = max(values, default=0.0)
    return [value / largest if largest > 0 else 0.0 for value in values]


def evenly(items: Sequence[EpochSpectrum], most: int) -> list[EpochSpectrum]:
    """At most so many items, evenly apart, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _colour(number: int, count: int) -> tuple[float, float, float, float]:
    """From light to dark as training goes on: the last epoch stands out, and order is seen without colour vision."""
    return matplotlib.colormaps["viridis_r"](0.08 + 0.87 * (number / (count - 1) if count > 1 else 1.0))


def _legend(epoch: float, rank: float | None) -> str:
    return f"{epoch:g}" if rank is None else f"{epoch:g}  ({rank:.1f})"


def _dress(axes: Axes, title: str) -> None:
    axes.set_yscale("log")
    axes.set_title(title)
    axes.set_xlabel("index i")
    axes.margins(x=0.02)
    axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    legend = axes.legend(
        title="epoch (effective rank)",
        title_fontsize=9,
        loc="upper right",  # where lines that fall leave most room
        ncols=2 if len(axes.get_lines()) > 4 else 1,
        columnspacing=1.0,
        handlelength=1.4,
        alignment="left",
    )
    legend.set_zorder(1)  # the lines are over it where they meet


def _power_of_ten(value: float, _: int | None = None) -> str:
    """10⁻³ rather than 0.001: without TeX, which the style turns off as names may have dollar signs."""
    exponent = round(math.log10(value))
    return {0: "1", -1: "0.1"}.get(exponent, f"10{str(exponent).translate(_SUPERSCRIPT)}")
