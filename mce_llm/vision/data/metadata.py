"""What an image file says beside its pixels: which way up it is, and the file without all that.

Metadata are written by cameras and editors of all kinds and are often damaged. None of it may cost good pixels.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_EXIF_HEADER = b"Exif\0\0"
_PNG_HEADER = b"\x89PNG\r\n\x1a\n"
# Without these a PNG has other pixels: size, palette, pixels, end, transparency.
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_WEBP_DROPPED = (b"EXIF", b"XMP ", b"ICCP")
_JFIF, _APP1, _ADOBE, _COMMENT, _PIXELS = (
    0xE0,
    0xE1,
    0xEE,
    0xFE,
    0xDA,
)  # markers; Adobe's says which colours a JPEG has
_WHOLE = {_JFIF: 14, _ADOBE: 12}  # bytes that these have at least
_NEVER = 1 << 16  # more than any segment has
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment

# What turns the stored pixels upright, and what takes that back.
TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_LEFT_RIGHT),
    3: (Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_180),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_TOP_BOTTOM),
    5: (Image.Transpose.TRANSPOSE, Image.Transpose.TRANSPOSE),
    6: (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90),
    7: (Image.Transpose.TRANSVERSE, Image.Transpose.TRANSVERSE),
    8: (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
}
"""EXIF orientation → (stored to upright, upright to stored); 1 and what is not in EXIF's table turn nothing."""
SIDEWAYS = (5, 6, 7, 8)
"""The orientations by which height and width change places."""


class BareFile(NamedTuple):
    """An image file without metadata.

    Attributes:
        data: The file.
        exif: The EXIF data that it had; None where there were none.
    """

    data: bytes
    exif: bytes | None


def orientation(image: Image.Image, exif: bytes | None = None) -> int:
    """Read which way up an image is; this one tag alone, whatever the others hold.

    Args:
        image: As Pillow opened it.
        exif: Its EXIF data, where they are no longer in the file.

    Returns:
        A key of `TURNS`, or 1: upright, unknown, or in data that cannot be read.
    """
    try:
        if exif is None:
            tags = image.getexif()
        else:
            tags = Image.Exif()
            tags.load(exif)
        value = tags.get(_ORIENTATION, 1)
        return int(value) if value in TURNS else 1
    except Exception:  # Pillow raises many types for damaged EXIF data
        return 1


def without_metadata(data: bytes) -> BareFile | None:
    """Leave out of a JPEG, PNG or WebP file all that is not needed for its pixels.

    Args:
        data: The file.

    Returns:
        What is left, or None for other formats and for files that cannot be taken apart.
    """
    for header, bare in ((b"\xff\xd8", _bare_jpeg), (_PNG_HEADER, _bare_png), (b"RIFF", _bare_webp)):
        if data.startswith(header):
            try:
                return bare(data)
            except (struct.error, IndexError):  # it ends in the middle
                return None
    return None


def _bare_jpeg(data: bytes) -> BareFile | None:
    kept, exif, at = [data[:2]], None, 2
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _ALONE:
            kept.append(data[at : at + 2])
            at += 2
            continue
        if marker == _PIXELS:
            return BareFile(b"".join([*kept, data[at:]]), exif)
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        content = data[at + 4 : end]
        if marker == _APP1 and exif is None and content.startswith(_EXIF_HEADER):
            exif = content
        application = _JFIF <= marker <= 0xEF
        # Of the segments of applications two say what pixels are; one that is too short to say it is left out.
        if (len(content) >= _WHOLE.get(marker, _NEVER)) if application else marker != _COMMENT:
            kept.append(data[at:end])
        at = end


def _bare_png(data: bytes) -> BareFile:
    kept, exif, at = [_PNG_HEADER], None, len(_PNG_HEADER)
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name in _PNG_KEPT:
            kept.append(data[at:end])
        elif name == b"eXIf":
            exif = _EXIF_HEADER + data[at + 8 : end - 4]
        if name == b"IEND":  # what comes behind it is no part of the image
            break
        at = end
    return BareFile(b"".join(kept), exif)


def _bare_webp(data: bytes) -> BareFile | None:
    if data[8:12] != b"WEBP":
        return None
    kept, exif, at = [], None, 12
    while at < len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if name not in _WEBP_DROPPED:
            kept.append(data[at:end])
        elif name == b"EXIF":
            exif = data[at + 8 : at + 8 + length]
        at = end
    body = b"".join([b"WEBP", *kept])
    return BareFile(b"RIFF" + struct.pack("<I", len(body)) + body, exif)
