"""Does an export compute what the encoder computes? It is read back by its own library and compared on random images.

Where there is a difference that matters the export is not kept; that is seen to in `mce_llm.vision.exporting.writing`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mce_llm.vision.exporting.encoder import Encoder, Outputs, outputs_of
from mce_llm.vision.exporting.errors import ExportError

# Another order of the same float32 operations changes features by about 1e-6 of their size.
TOLERANCE = 1e-5
_IMAGES = 2


def random_images(encoder: Encoder, seed: int = 0) -> Tensor:
    """Images of the size that the encoder was trained on, standard normal: what normalised pixels are like.

    Args:
        encoder: Gives the size.
        seed: Of the images.

    Returns:
        float32, (2, 3, image_size, image_size).
    """
    size = encoder.image_size
    return torch.randn(_IMAGES, 3, size, size, generator=torch.Generator().manual_seed(seed))


def deviations(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """max|a − b| / max|a| of each output that both give.

    Args:
        ours: What the encoder gives.
        theirs: What the export gives.

    Returns:
        The deviations by name; 0 for equal outputs, infinite where shapes differ, something is not finite, or a is
        zero throughout and b is not.
    """
    found = {}
    for name in ours.keys() & theirs.keys():
        a, b = ours[name].double(), theirs[name].double()
        if a.shape != b.shape or not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
            found[name] = float("inf")
            continue
        difference, size = float((a - b).abs().max()), float(a.abs().max())
        found[name] = difference / size if size else (float("inf") if difference else 0.0)
    return dict(sorted(found.items()))


def check(encoder: Encoder, read_back: Outputs, format_name: str) -> dict[str, float]:
    """Compare an encoder with its export.

    Args:
        encoder: What was exported.
        read_back: What the format's own library made of the export.
        format_name: For the message.

    Returns:
        The deviations, all at most `TOLERANCE`.

    Raises:
        ExportError: One is larger, or the export gives no features.
    """
    images = random_images(encoder)
    found = deviations(outputs_of(encoder.module)(images), read_back(images))
    if "features" not in found:
        raise ExportError(f"the {format_name} export gives no features")
    bad = {name: value for name, value in found.items() if not value <= TOLERANCE}
    if bad:
        listed = ", ".join(f"{name} by {value:.2g}" for name, value in bad.items())
        raise ExportError(
            f"the {format_name} export of {encoder.spec.name} was not kept: read back, it deviates from the encoder "
            f"({listed}; the limit is {TOLERANCE:g} of the largest value)"
        )
    return found
