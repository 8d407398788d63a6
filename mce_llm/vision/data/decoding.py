"""From the bytes of an image file to RGB, with Pillow. Nothing is resized here.

torchvision's own decoders take a fifth less time for a JPEG file, but are deprecated and will be removed.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mce_llm.running.messages import cause
from mce_llm.vision.data.errors import CorruptImageError

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


def read_image(path: str | os.PathLike[str], *, upright: bool = True) -> Tensor:
    """Read and decode an image file.

    Args:
        path: The file.
        upright: As in `decode_bytes`.

    Returns:
        RGB as uint8, (3, height, width).

    Raises:
        CorruptImageError: It cannot be read or decoded.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CorruptImageError(f"{path} cannot be read: {error.strerror or error}") from error
    return decode_bytes(data, str(path), upright=upright)


def decode_bytes(data: bytes, name: str, *, upright: bool = True) -> Tensor:
    """Decode the contents of an image file.

    Grey, palette and CMYK images become RGB as Pillow converts them, 16-bit values are divided by 257; transparency is
    dropped.

    Args:
        data: The contents.
        name: What to call it if it is broken.
        upright: Apply the orientation in the EXIF data. False gives the pixels as they are stored, which is what the
            coordinates of annotations refer to.

    Returns:
        RGB as uint8, (3, height, width), with the colours of a pixel side by side in memory.

    Raises:
        CorruptImageError: It cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, of which nothing is used
            with Image.open(io.BytesIO(data)) as image:
                return _tensor(_rgb(_turned(image) if upright else image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptImageError(
            f"{name} is no image that can be decoded ({len(data):,} bytes; {cause(error)}); replace or remove it"
        ) from error


def _turned(image: Image.Image) -> Image.Image:
    return image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit values at 255 where it should scale them.
        values = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
