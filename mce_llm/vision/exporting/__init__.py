"""Encoders to and from the formats of other libraries, each export read back and compared before it is kept."""

from mce_llm.vision.exporting.encoder import Encoder, read_encoder
from mce_llm.vision.exporting.errors import ExportError, ForeignWeightsError, UnsupportedFormatError
from mce_llm.vision.exporting.foreign import import_weights, other_encoders, read_foreign
from mce_llm.vision.exporting.formats import FORMATS, format_by_name, reasons_against
from mce_llm.vision.exporting.settings import ExportSettings
from mce_llm.vision.exporting.writing import write_export

__all__ = [
    "FORMATS",
    "Encoder",
    "ExportError",
    "ExportSettings",
    "ForeignWeightsError",
    "UnsupportedFormatError",
    "format_by_name",
    "import_weights",
    "other_encoders",
    "read_encoder",
    "read_foreign",
    "reasons_against",
    "write_export",
]
