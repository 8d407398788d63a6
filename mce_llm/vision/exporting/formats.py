"""The formats by name. Each is a module with the same five functions; what is common to them is done by the writer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.vision.exporting.encoder import Encoder, Outputs
from mce_llm.vision.exporting.errors import UnsupportedFormatError

ALL = "all"


@dataclass(frozen=True)
class Format:
    """One target.

    Attributes:
        name: What it is called on the command line, and its folder.
        library: The package that reads it, for the record.
        check: Raises `UnsupportedFormatError` for an encoder that has no place in it.
        write: Write an encoder to an empty folder.
        read: Read it back in the library's public way.
        usage: A piece of Markdown that says how to load it.
    """

    name: str
    library: str
    check: Callable[[Encoder], None]
    write: Callable[[Encoder, Path], None]
    read: Callable[[Encoder, Path], Outputs]
    usage: Callable[[Encoder], str]


# name: (module, the package that reads it)
_MODULES = {
    "torchvision": ("torchvision_format", "torchvision"),
    "timm": ("timm_format", "timm"),
    "transformers": ("transformers_format", "transformers"),
    "detectron2": ("detectron2_format", "detectron2"),
    "torch_export": ("program_format", "torch"),
}
FORMATS = tuple(_MODULES)
"""The names of the formats."""


def format_by_name(name: str) -> Format:
    """Import a format; the libraries of the others are left alone."""
    module_name, library = _MODULES[name]
    module: Any = importlib.import_module(f"mce_llm.vision.exporting.{module_name}")
    return Format(name, library, module.check, module.write, module.read, module.usage)


def reasons_against(encoder: Encoder) -> dict[str, str]:
    """Which formats have no place for an encoder, and why.

    Args:
        encoder: The encoder.

    Returns:
        The reasons by format; formats that have one are left out.
    """
    reasons = {}
    for name in FORMATS:
        try:
            format_by_name(name).check(encoder)
        except UnsupportedFormatError as error:
            reasons[name] = str(error)
    return reasons
