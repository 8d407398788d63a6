import numpy as np
import pytest
import torch
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
        ("RGB", ".bmp"),
        ("RGB", ".webp"),
        ("RGB", ".jpg"),
        ("L", ".jpg"),
        ("CMYK", ".jpg"),
    ],
)
def test_every_mode_becomes_rgb(mode, suffix, draw, tmp_path):
    image = draw(1, (24, 20)).convert(mode)
    options = {"lossless": True} if suffix == ".webp" else {"quality": 98, "subsampling": 0}
    image.save(tmp_path / f"x{suffix}", **(options if suffix in (".webp", ".jpg") else {}))
    expected = np.asarray(image.convert("RGB")).astype(int)
    found = pixels(tmp_path / f"x{suffix}")
    assert found.shape == (20, 24, 3)
    # JPEG stores this image to within a few levels; every other format stores it exactly.
    assert np.abs(found - expected).max() <= (10 if suffix == ".jpg" else 0)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert pixels(tmp_path / "x.png")[0, :, 0].tolist() == [0, 1, 128, 255]


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
