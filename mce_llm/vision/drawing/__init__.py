"""Pictures of a pretraining run: pure functions from numbers to figures. What is drawn, and from where, is the script's matter."""

from mce_llm.vision.drawing.curves import draw_curves
from mce_llm.vision.drawing.measurements import (
    EpochSpectrum,
    Journal,
    MeasurementError,
    read_journal,
    read_spectra,
)
from mce_llm.vision.drawing.projections import (
    TsneUnavailableError,
    draw_projection,
    principal_components,
    tsne,
)
from mce_llm.vision.drawing.spectra import draw_spectra
from mce_llm.vision.drawing.style import DPI, write_png
from mce_llm.vision.drawing.views import ViewRow, draw_views

__all__ = [
    "DPI",
    "EpochSpectrum",
    "Journal",
    "MeasurementError",
    "TsneUnavailableError",
    "ViewRow",
    "draw_curves",
    "draw_projection",
    "draw_spectra",
    "draw_views",
    "principal_components",
    "read_journal",
    "read_spectra",
    "tsne",
    "write_png",
]
