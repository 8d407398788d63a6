import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mce_llm.vision.data import CorruptImageError
from mce_llm.vision.data.decoding import decode_bytes, read_image
from mce_llm.vision.data.folders import FolderImages


def pixels(path):
    return read_image(path).permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", ".png"),
        ("L", ".png"),
        ("LA", ".png"),
        ("P", ".png"),
        ("RGBA", ".png"),
        ("1", ".png"),
        ("CMYK", ".tif"),
        ("PA", ".tif"),
        ("YCbCr", ".tif"),
        ("RGB", ".bmp"),
        ("RGB", ".webp"),
        ("RGB", ".jpg"),
        ("L", ".jpg"),
        ("CMYK", ".jpg"),
    ],
)
def test_every_mode_becomes_rgb(mode, suffix, draw, tmp_path):
    image = draw(1, (24, 20)).convert("LA" if mode == "PA" else "RGB").convert(mode)
    options = {"lossless": True} if suffix == ".webp" else {"quality": 98, "subsampling": 0}
    image.save(tmp_path / f"x{suffix}", **(options if suffix in (".webp", ".jpg") else {}))
    expected = np.asarray(image.convert("RGB")).astype(int)
    found = pixels(tmp_path / f"x{suffix}")
    assert found.shape == (20, 24, 3)
    # JPEG stores this image to within a few levels; every other format stores it exactly.
    assert np.abs(found - expected).max() <= (10 if suffix == ".jpg" else 0)


def tiff(values, bits, *, kind=1, white_is_zero=False, colours=1, order="<"):
    """A TIFF file as it may be written by others: rows of values of any depth and kind (1 unsigned, 2 signed, 3 float)."""
    height, width = values.shape[:2]
    if bits == 12:  # most significant bit first, packed
        flat = values.astype(np.uint16).ravel()
        digits = (flat[:, None] >> np.arange(11, -1, -1)) & 1
        data = np.packbits(digits.astype(np.uint8).ravel()).tobytes()
    else:
        letter = {1: "u", 2: "i", 3: "f"}[kind]
        data = values.astype(f"{order}{letter}{bits // 8}").tobytes()
    photometric = 2 if colours == 3 else int(not white_is_zero)
    entries = {
        256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: colours, 278: height,
        279: len(data), 339: kind,
    }  # fmt: skip
    if colours == 2:
        entries[338] = 1  # the second is transparency, by which the first is multiplied
    place = 8 + len(data) + len(data) % 2
    extra = place + 2 + 12 * len(entries) + 4
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", place)
    table = struct.pack(f"{order}H", len(entries))
    tail = b""
    for tag, value in entries.items():
        if tag in (258, 339) and colours == 3:
            table += struct.pack(f"{order}HHLL", tag, 3, 3, extra + len(tail))
            tail += struct.pack(f"{order}3H", *[value] * 3)
        elif tag in (258, 339) and colours == 2:
            table += struct.pack(f"{order}HHLHH", tag, 3, 2, value, value)
        else:
            table += struct.pack(f"{order}HHLL", tag, 4, 1, value)
    return head + data + b"\0" * (len(data) % 2) + table + struct.pack(f"{order}L", 0) + tail


def png(values, bits, colour_type):
    """A PNG file of 16 bits in any of its colour types, most of which Pillow does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    height, width = values.shape[:2]
    parts = [
        (b"IHDR", struct.pack(">LLBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = [struct.pack(">L", len(c)) + n + c + struct.pack(">L", zlib.crc32(n + c)) for n, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


LEVELS = np.arange(256, dtype=np.int64).reshape(16, 16)
DEEP = LEVELS * 257
COLOURS = np.stack([DEEP, DEEP[::-1], DEEP.T], axis=-1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(LEVELS, 8), LEVELS),
        (tiff(LEVELS, 8, white_is_zero=True), 255 - LEVELS),
        (tiff(DEEP, 16), LEVELS),
        (tiff(DEEP, 16, order=">"), LEVELS),
        (tiff(DEEP, 16, white_is_zero=True), 255 - LEVELS),
        (tiff((LEVELS * 4095 / 255).round(), 12), LEVELS),
        (tiff(LEVELS / 255, 32, kind=3), LEVELS),
        (tiff(LEVELS / 255, 32, kind=3, order=">"), LEVELS),
        (tiff(LEVELS / 255, 32, kind=3, white_is_zero=True), 255 - LEVELS),
        (tiff(COLOURS, 16, colours=3), COLOURS // 257),
        (tiff(COLOURS, 16, colours=3, order=">"), COLOURS // 257),
        (png(DEEP, 16, 0), LEVELS),
        (png(COLOURS, 16, 2), COLOURS // 257),
        (png(np.stack([DEEP, DEEP[::-1]], axis=-1), 16, 4), LEVELS),
        (png(np.concatenate([COLOURS, DEEP[..., None]], axis=-1), 16, 6), COLOURS // 257),
        (b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes(), LEVELS),
        (b"P5 16 16 1023\n" + (LEVELS * 1023 / 255).round().astype(">u2").tobytes(), LEVELS),
        (b"Pf 16 16 -1.0\n" + (LEVELS[::-1] / 255).astype("<f4").tobytes(), LEVELS),
    ],
)
def test_every_depth_keeps_its_brightness(data, expected):
    found = decode_bytes(data, "x").permute(1, 2, 0).numpy().astype(int)
    expected = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=-1)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tiff(LEVELS, 32), "whole numbers of 32 bits from 0 to 255, of which nothing says what is black"),
        (tiff(LEVELS, 32, kind=2), "whole numbers of 32 bits from 0 to 255"),
        (tiff(DEEP, 32, kind=2, order=">"), "whole numbers of 32 bits from 0 to 65535"),
        (tiff(LEVELS + 4_000_000_000, 32), "whole numbers of 32 bits from 4e+09 to 4e+09"),
        (tiff(LEVELS - 100, 16, kind=2), "whole numbers of 16 bits from -100 to 155"),
        (tiff(LEVELS - 128, 8, kind=2), "whole numbers of 8 bits from -128 to 127"),
        (tiff(LEVELS, 32, kind=3), "floats from 0 to 255, and only of floats in "),
        (tiff(DEEP, 32, kind=3), "floats from 0 to 65535"),
        (tiff(LEVELS / 255 - 0.5, 32, kind=3), "floats from -0.5 to 0.5"),
        (tiff(np.where(LEVELS == 7, np.nan, 0.5), 32, kind=3), "floats from nan to nan"),
        (tiff(np.where(LEVELS == 7, np.inf, 0.5), 32, kind=3), "floats from 0.5 to inf"),
    ],
)
def test_values_of_no_known_range_are_refused_by_name(data, what, tmp_path):
    (tmp_path / "scan.tif").write_bytes(data)
    with pytest.raises(CorruptImageError) as caught:
        read_image(tmp_path / "scan.tif")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/scan.tif holds {what}")
    assert message.endswith("save it with 8 or 16 bits without a sign, or as floats in [0, 1]")
    assert "\n" not in message


def test_grey_with_premultiplied_transparency_and_lab():
    both = np.stack([LEVELS // 2, np.full_like(LEVELS, 128)], axis=-1)  # half of the level, half opaque
    found = decode_bytes(tiff(both, 8, colours=2), "x").permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - LEVELS[..., None]).max() <= 2
    file = io.BytesIO()
    Image.new("LAB", (4, 4), (128, 128, 128)).save(file, "TIFF")
    assert abs(decode_bytes(file.getvalue(), "x").float().mean() - 119) < 2  # a lightness of 50 % in sRGB


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_nothing_but_a_named_error_escapes(data):
    """Any change of any byte of any file: an image, or one line that names it."""
    whole = data.draw(st.sampled_from(FILES))
    changed = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    for place, value in data.draw(st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8)):
        changed[int(place * len(changed))] = value
    try:
        image, message = decode_bytes(bytes(changed), "this file"), ""
    except CorruptImageError as error:
        image, message = torch.zeros(3, 1, 1, dtype=torch.uint8), str(error)
    assert message == "" or message.startswith("this file ")
    assert "\n" not in message
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3


def _files():
    found = [
        tiff(DEEP, 16),
        tiff(LEVELS / 255, 32, kind=3),
        tiff(COLOURS, 16, colours=3),
        png(COLOURS, 16, 2),
    ]
    for mode, kind in (("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGB", "WEBP")):
        for options in ({}, {"exif": Image.Exif()}) if kind == "JPEG" else ({},):
            file = io.BytesIO()
            Image.fromarray((COLOURS // 257).astype(np.uint8)).convert(mode).save(file, kind, **options)
            found.append(file.getvalue())
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        file = io.BytesIO()
        Image.fromarray((COLOURS // 257).astype(np.uint8)).save(file, "TIFF", compression=compression)
        found.append(file.getvalue())
    return found


FILES = _files()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_camera_s_orientation_is_applied(suffix, draw, tmp_path):
    image, exif = draw(2, (24, 16)), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(
        tmp_path / f"x{suffix}", exif=exif, **({"quality": 98, "subsampling": 0} if suffix == ".jpg" else {})
    )
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    found = pixels(tmp_path / f"x{suffix}")
    assert found.shape == (24, 16, 3)
    assert np.abs(found - upright).mean() < 5
    with Image.open(tmp_path / f"x{suffix}") as opened:
        stored = np.array(opened.convert("RGB"))
    as_stored = read_image(tmp_path / f"x{suffix}", upright=False)
    assert np.array_equal(as_stored.permute(1, 2, 0).numpy(), stored)


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_a_folder_of_images_reads_them_too(mode, tmp_path):
    levels = (np.arange(16 * 12) % 200).astype(np.uint8).reshape(12, 16)
    image = (
        Image.fromarray(levels.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(levels).convert(mode)
    )
    assert image.mode == mode
    (tmp_path / "class").mkdir()
    image.save(tmp_path / "class" / "x.png")
    found, label = FolderImages(tmp_path, "grey")[0]
    assert label == 0
    assert torch.equal(found, torch.from_numpy(levels).expand(3, -1, -1))


def test_pixels_lie_as_torch_resizes_them_fastest(draw, tmp_path):
    for suffix in (".png", ".jpg"):
        draw(3).save(tmp_path / f"x{suffix}")
        image = read_image(tmp_path / f"x{suffix}")
        assert image.dtype == torch.uint8
        assert image.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_broken_file_is_named(suffix, draw, tmp_path):
    path = tmp_path / f"broken{suffix}"
    draw(4, (200, 200)).save(path)
    whole = path.read_bytes()
    for data in (b"", b"not an image", whole[:20], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(CorruptImageError, match=rf"broken{suffix} .*{len(data):,} bytes"):
            read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CorruptImageError, match=r"gone\.png cannot be read: No such file"):
        read_image(tmp_path / "gone.png")


def test_bytes_are_named_as_they_were_called():
    with pytest.raises(CorruptImageError, match=r"row 3 of x is no image"):
        decode_bytes(b"\xff\xd8\xff\xe0 and then nothing", "row 3 of x")
