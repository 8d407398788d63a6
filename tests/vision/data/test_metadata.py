"""Metadata never cost pixels: damaged EXIF data, profiles and comments, and the orientation read all the same."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mce_llm.vision.data.decoding import decode_bytes, read_header
from mce_llm.vision.data.metadata import without_metadata

FORMATS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
ORIENTATION, MAKE = 0x0112, 0x010F


def camera_exif(orientation=6):
    """EXIF data of every part that cameras write: strings, ratios, a maker's note, a place."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE], exif[0x0110] = orientation, "Canon", "EOS"
    exif[0x011A], exif[0x011B], exif[0x0128] = 72.0, 72.0, 2
    details = exif.get_ifd(0x8769)
    details[0x927C], details[0x9003] = b"Nikon\0\x02\x10\0\0II*\0\x08\0\0\0", "2020:01:01 00:00:00"
    place = exif.get_ifd(0x8825)
    place[1], place[2] = "N", (1.0, 2.0, 3.0)
    return exif.tobytes()


def encoded(kind, exif=b""):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **FORMATS[kind], **({"exif": exif} if exif else {}))
    return file.getvalue()


def opened(data):
    """The stored pixels as Pillow alone has them, of a file without metadata."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def decoded(data, **options):
    return decode_bytes(data, "x", **options).permute(1, 2, 0).numpy()


def exif_place(data):
    """Where the EXIF data of a file stand, from the byte order on."""
    exif = camera_exif().removeprefix(b"Exif\0\0")
    at = data.index(exif[:40])
    assert data[at : at + len(exif)] == exif
    return at, len(exif)


def with_right_checksum(data, at, length):
    """A PNG whose eXIf chunk was changed: its checksum is brought up to date."""
    return (
        data[: at + length]
        + struct.pack(">I", zlib.crc32(data[at - 4 : at + length]))
        + data[at + length + 4 :]
    )


UPRIGHT = {
    kind: [
        np.array(Image.fromarray(opened(encoded(kind))).transpose(turn)) for turn in Image.Transpose
    ] + [opened(encoded(kind))]
    for kind in FORMATS
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "checksum"), [("JPEG", None), ("WEBP", None), ("PNG", "right"), ("PNG", "wrong")]
)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_change_of_exif_bytes_costs_pixels(kind, checksum, changes):
    data = encoded(kind, camera_exif())
    at, length = exif_place(data)
    changed = bytearray(data)
    for where, value in changes:
        changed[at + int(where * length)] = value
    if checksum == "right":
        changed = with_right_checksum(bytes(changed), at, length)
    found = decoded(bytes(changed))
    assert any(np.array_equal(found, one) for one in UPRIGHT[kind])
    assert np.array_equal(decoded(bytes(changed), upright=False), UPRIGHT[kind][-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_thousands_of_damaged_exif_data(kind):
    """As above, 10,000 files of each format; a change beyond the directory's head and this tag leaves the turn as it is."""
    data = encoded(kind, camera_exif())
    at, length = exif_place(data)
    tag = data.index(struct.pack(">HHL", ORIENTATION, 3, 1), at) - at
    protected = {*range(10), *range(tag, tag + 12)}
    draw = random.Random(7)
    kept = 0
    for _ in range(10_000):
        changed = bytearray(data)
        places = [draw.randrange(length) for _ in range(draw.randint(1, 6))]
        for place in places:
            changed[at + place] = draw.choice([*range(14), 0x7F, 0xFF, draw.randrange(256)])
        changed = with_right_checksum(bytes(changed), at, length) if kind == "PNG" else bytes(changed)
        found = decoded(changed)
        assert any(np.array_equal(found, one) for one in UPRIGHT[kind])
        # A tag that was changed into this one, or whose place in the file was changed, may hide it.
        if not protected & set(places) and min(places) > tag + 12:
            kept += 1
            assert np.array_equal(found, UPRIGHT[kind][Image.Transpose.ROTATE_270])
    assert kept > 500


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("value", [3, 5, 7, 9, 10, 11, 12])
def test_an_orientation_is_read_beside_a_make_of_another_type(kind, value):
    """What Pillow's own turning stumbles over: it writes all tags anew."""
    data = encoded(kind, camera_exif())
    at, length = exif_place(data)
    make = data.index(struct.pack(">HH", MAKE, 2), at)
    changed = data[: make + 2] + struct.pack(">H", value) + data[make + 4 :]
    if kind == "PNG":
        changed = with_right_checksum(changed, at, length)
    assert np.array_equal(decoded(changed), UPRIGHT[kind][Image.Transpose.ROTATE_270])


@pytest.mark.parametrize("kind", [*FORMATS, "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_both_ways(kind, orientation, tmp_path):
    turns = {
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: np.rot90,
    }  # fmt: skip
    path = tmp_path / "x"
    if kind == "TIFF":
        Image.fromarray(PIXELS).save(path, kind, tiffinfo={ORIENTATION: orientation})
        stored = PIXELS
    else:
        path.write_bytes(encoded(kind, camera_exif(orientation)))
        stored = UPRIGHT[kind][-1]
    assert np.array_equal(decoded(path.read_bytes(), upright=False), stored)
    assert np.array_equal(decoded(path.read_bytes()), turns[orientation](stored))
    header = read_header(path)
    assert header == (16, 24, orientation)
    for upright in (False, True):
        assert header.size(upright=upright) == decoded(path.read_bytes(), upright=upright).shape[:2]


def test_a_header_is_read_of_a_file_with_damaged_metadata(tmp_path):
    data = bytearray(encoded("PNG", camera_exif()))
    at, length = exif_place(bytes(data))
    data[at + length] ^= 255  # the checksum
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(tmp_path / "x.png")
    assert read_header(tmp_path / "x.png") == (16, 24, 6)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"iCCP", b"x\0\x05nonsense"),  # an unknown compression
        (b"zTXt", b"k\0\0" + zlib.compress(b"a" * 3_000_000)),  # more text than Pillow reads
        (b"tIME", b""),
        (b"pHYs", b"\0"),
        (b"gAMA", b"\0"),
        (b"cHRM", b"\0" * 3),
    ],
)
@pytest.mark.parametrize("after", [b"IHDR", b"IDAT"])
def test_chunks_that_are_no_pixels_cost_none(chunk, after):
    data = encoded("PNG")
    name, content = chunk
    at = data.index(after)
    (length,) = struct.unpack(">I", data[at - 4 : at])
    at += length + 8
    piece = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    assert np.array_equal(decoded(data[:at] + piece + data[at:]), PIXELS)


def test_bytes_behind_the_end_of_a_png_with_damaged_metadata_cost_nothing():
    data = encoded("PNG")
    at = data.index(b"IDAT") - 4
    damaged = struct.pack(">I", 3) + b"tEXt" + b"k\0v" + b"\0\0\0\0"  # no checksum of these
    assert np.array_equal(decoded(data[:at] + damaged + data[at:] + b"!"), PIXELS)


@pytest.mark.parametrize(
    ("marker", "content"), [(0xE0, b"JF"), (0xE0, b""), (0xEE, b"Ado"), (0xE0, b"JFIF\0\1")]
)
def test_segments_of_a_jpeg_that_are_too_short_cost_no_pixels(marker, content):
    data = encoded("JPEG")
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    damaged = bytes([0xFF, 0xE1]) + struct.pack(">H", 8) + b"Exif\0\0"  # and EXIF data of nothing
    assert np.array_equal(decoded(data[:2] + segment + damaged + data[2:]), opened(data))


def test_transparency_and_palette_stay():
    image = Image.fromarray(PIXELS).quantize(64)
    image.info["transparency"] = bytes([0, 128, *[255] * 62])
    file = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 10, zip=True)
    image.save(file, "PNG", pnginfo=text)
    bare = without_metadata(file.getvalue())
    assert b"comment" not in bare.data
    with Image.open(io.BytesIO(bare.data)) as found, Image.open(file) as before:
        assert found.mode == "P"
        assert np.array_equal(np.array(found.convert("RGBA")), np.array(before.convert("RGBA")))


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_taken_out_and_what_is_kept(kind):
    data = encoded(kind, camera_exif())
    bare = without_metadata(data)
    assert bare.exif.removeprefix(b"Exif\0\0") == camera_exif().removeprefix(b"Exif\0\0")
    assert b"Canon" not in bare.data
    assert np.array_equal(opened(bare.data), opened(encoded(kind)))
    assert without_metadata(data[:30]) is None or np.array_equal(opened(data), opened(encoded(kind)))
    for cut in range(0, len(data), 7):
        without_metadata(data[:cut])  # nothing escapes


def test_colours_of_a_cmyk_jpeg_are_kept():
    """Adobe's segment says that they are inverted."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert("CMYK").save(file, "JPEG", quality=95, comment=b"words")
    bare = without_metadata(file.getvalue())
    assert b"words" not in bare.data
    assert np.array_equal(opened(bare.data), opened(file.getvalue()))
