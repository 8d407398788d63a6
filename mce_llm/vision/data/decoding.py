"""From the bytes of an image file to RGB, with Pillow: the one place where images are opened. Nothing is resized here.

torchvision's own decoders take a fifth less time for a JPEG file, but are deprecated and will be removed.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mce_llm.running.messages import cause
from mce_llm.vision.data.errors import CorruptImageError
from mce_llm.vision.data.metadata import SIDEWAYS, TURNS, orientation, without_metadata

# TIFF's tags.
_WIDTH, _HEIGHT, _BITS, _COLOURS, _SAMPLE_FORMAT = 256, 257, 258, 262, 339
_WHITE_IS_ZERO = 0
_SIGNED = 2
# Formats whose mode I holds 16-bit values, which they define to be black at 0 and white at 65,535.
_SIXTEEN_BITS = ("PNG", "PPM")
_INTEGERS = "whole numbers of {bits} bits from {low:g} to {high:g}, of which nothing says what is black and what white"
_REMEDY = "save it with 8 or 16 bits without a sign, or as floats in [0, 1]"


class ImageHeader(NamedTuple):
    """What a file says before its pixels.

    Attributes:
        height: Rows as they are stored.
        width: Columns as they are stored.
        orientation: EXIF's, 1 … 8.
    """

    height: int
    width: int
    orientation: int

    def size(self, *, upright: bool) -> tuple[int, int]:
        """Height and width of the image that `read_image` gives."""
        turned = upright and self.orientation in SIDEWAYS
        return (self.width, self.height) if turned else (self.height, self.width)


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
    return decode_bytes(_content(path), str(path), upright=upright)


def decode_bytes(data: bytes, name: str, *, upright: bool = True) -> Tensor:
    """Decode the contents of an image file; of several images in it, the first.

    | stored | becomes |
    |---|---|
    | 8 bits or fewer: grey, RGB, palette, CMYK, YCbCr, Lab | RGB as Pillow converts it |
    | with transparency | the same; transparency is dropped |
    | 12 or 16 bits without a sign | values over 4,095 or 65,535, times 255 (colours: the upper 8 bits) |
    | floats, all of them in [0, 1] | times 255 |
    | other floats, 32-bit integers, signed integers | refused: the file does not say what is black and what white |

    Damaged metadata cost nothing: of a JPEG, PNG or WebP file that cannot be opened, the pixels alone are read.

    Args:
        data: The contents.
        name: What to call it if it is broken.
        upright: Apply the orientation in the EXIF data (for TIFF, in its own tag). False gives the pixels as they are
            stored.

    Returns:
        RGB as uint8, (3, height, width), with the colours of a pixel side by side in memory.

    Raises:
        CorruptImageError: It cannot be decoded, or its values have no known range.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, of which nothing but the orientation is used
        try:
            return _decoded(data, None, upright)
        except _RangeError as error:
            raise CorruptImageError(f"{name} holds {error}; {_REMEDY}") from None
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise many types for damaged files
            bare = without_metadata(data)
            if bare is not None:
                try:
                    return _decoded(*bare, upright)
                except Exception:  # its pixels are damaged too: what was said first is closer to the cause
                    pass
            raise _corrupt(name, data, error) from error


def read_header(path: str | os.PathLike[str]) -> ImageHeader:
    """Read the size and orientation of an image file, and none of its pixels.

    Args:
        path: The file.

    Returns:
        What it says.

    Raises:
        CorruptImageError: It cannot be read, or is no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                return _header(image, None)
        except Exception:  # Pillow's readers raise many types for damaged files
            data = _content(path)
            try:
                bare = without_metadata(data)
                with Image.open(io.BytesIO(data if bare is None else bare.data)) as image:
                    return _header(image, None if bare is None else bare.exif)
            except Exception as error:
                raise _corrupt(str(path), data, error) from error


class _RangeError(Exception):
    """Values of which nothing says how bright they are."""


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CorruptImageError(f"{path} cannot be read: {error.strerror or error}") from error


def _corrupt(name: str, data: bytes, error: Exception) -> CorruptImageError:
    # Pillow names the object in memory that it could not identify, which is of no use to anybody.
    known = "its format is unknown" if isinstance(error, Image.UnidentifiedImageError) else cause(error)
    return CorruptImageError(
        f"{name} is no image that can be decoded ({len(data):,} bytes; {known}); replace or remove it, or "
        "convert it to PNG or JPEG with 8 bits"
    )


def _header(image: Image.Image, exif: bytes | None) -> ImageHeader:
    width, height = image.size
    tags = _tags(image)
    if tags:  # Pillow gives the size that the image will have when it is turned
        width, height = tags[_WIDTH], tags[_HEIGHT]
    late = (
        image.format == "PNG" and "exif" not in image.info and exif is None
    )  # Pillow would decode it to look
    return ImageHeader(height, width, 1 if late else orientation(image, exif))


def _decoded(data: bytes, exif: bytes | None, upright: bool) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        tags = _tags(image)
        before = orientation(image) if tags else 1
        image.load()
        turn = orientation(image, exif)
        rgb = _rgb(image, tags)
        if before != 1 and turn == 1:  # Pillow turned it by itself, as it does with TIFF
            return _tensor(rgb if upright else rgb.transpose(TURNS[before][1]))
        return _tensor(rgb.transpose(TURNS[turn][0]) if upright and turn != 1 else rgb)


def _tags(image: Image.Image) -> dict[int, Any]:
    """TIFF's tags that say how pixels are stored; none for other formats."""
    if image.format != "TIFF":
        return {}
    found = image.tag_v2  # type: ignore[attr-defined]
    return {tag: found.get(tag) for tag in (_WIDTH, _HEIGHT, _BITS, _COLOURS, _SAMPLE_FORMAT)}


def _rgb(image: Image.Image, tags: dict[int, Any]) -> Image.Image:
    bits = max(tags.get(_BITS) or (8,))
    signed = _SIGNED in (tags.get(_SAMPLE_FORMAT) or ())
    if image.mode[0] in "IF" or signed:
        values = np.asarray(image)
        values = values.view(np.int8) if signed and values.dtype == np.uint8 else values
        image = Image.fromarray(_eight_bits(values, image, bits, signed, tags.get(_COLOURS)))
    if image.mode == "La":  # from which Pillow has no way to RGB
        image = image.convert("LA")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _eight_bits(
    values: np.ndarray, image: Image.Image, bits: int, signed: bool, colours: int | None
) -> np.ndarray:
    """Grey values by the range that their kind has, as uint8."""
    if image.mode == "I" and image.format == "TIFF" and bits == 32 and not signed:
        values = values.view(np.uint32)  # for which Pillow has no mode
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # what is not a number is in no range
            raise _RangeError(
                f"floats from {low:g} to {high:g}, and only of floats in [0, 1] is it known what is white"
            )
        white = 1.0
    elif image.mode.startswith("I;16") and not signed:
        white = 2.0 ** (bits if bits == 12 else 16) - 1
    elif image.format in _SIXTEEN_BITS:
        white = 65535.0
    else:
        raise _RangeError(_INTEGERS.format(bits=bits if bits > 8 or signed else 32, low=low, high=high))
    shares = values.astype(np.float32) / np.float32(white)
    if colours == _WHITE_IS_ZERO:  # which Pillow leaves to us beyond 8 bits
        shares = 1 - shares
    return (shares * 255).round().clip(0, 255).astype(np.uint8)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
