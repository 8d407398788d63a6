"""Images and targets: one function of (seed, epoch, index), with boxes and masks that stay together."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mce_llm.vision.coco import CocoDataError, CocoImage, EvaluationImages, TrainingImages, read_annotations
from mce_llm.vision.coco.batches import evaluation_loader
from mce_llm.vision.coco.dataset import read_image, scaled_size


@pytest.fixture
def annotations(hard_set):
    return read_annotations(hard_set.path, hard_set.folder)


def images_of(annotations, seed=0, sides=(40, 56, 72), flip=0.5, max_size=200):
    return TrainingImages(annotations, seed=seed, short_sides=sides, max_size=max_size, flip_probability=flip)


def test_an_item_is_a_function_of_seed_epoch_and_index(annotations):
    first, second = images_of(annotations), images_of(annotations)
    torch.rand(7)  # whoever drew what before
    places = [(epoch, index) for epoch in range(4) for index in range(3)]
    forward = {place: first[place] for place in places}
    backward = {place: second[place] for place in reversed(places)}
    for place in places:
        torch.testing.assert_close(forward[place], backward[place], rtol=0, atol=0)
    shapes = {tuple(forward[epoch, 0][0].shape) for epoch in range(4)}
    assert len(shapes) > 1  # epochs differ
    other = images_of(annotations, seed=1)
    assert any(other[place][0].shape != forward[place][0].shape for place in places)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_boxes_masks_and_pixels_move_together(annotations, flip, index):
    image, target = images_of(annotations, sides=(96,), flip=flip)[0, index]
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert min(image.shape[1:]) == 96
    assert target["masks"].shape == (len(target["boxes"]), *image.shape[1:])
    assert target["labels"].dtype == torch.int64
    for box, mask in zip(target["boxes"], target["masks"], strict=True):
        rows, columns = torch.where(mask)
        around = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        # A pixel of the original is 2 of the resized image, and a polygon's edge pixels may round either way.
        torch.testing.assert_close(box, around.float(), rtol=0, atol=2.5)
    # Instances are bright in the first channel, whatever else moved: within the first mask more than elsewhere.
    inside = image[0][target["masks"].any(0).bool()].float().mean()
    assert inside > 80 + image[0][~target["masks"].any(0).bool()].float().mean()


def test_flipping_mirrors(annotations):
    plain, flipped = (images_of(annotations, sides=(48,), flip=p)[0, 0] for p in (0.0, 1.0))
    torch.testing.assert_close(flipped[0], plain[0].flip(-1))
    torch.testing.assert_close(flipped[1]["masks"], plain[1]["masks"].flip(-1))
    width = plain[0].shape[-1]
    torch.testing.assert_close(flipped[1]["boxes"][:, [2, 0]], width - plain[1]["boxes"][:, [0, 2]])


def test_an_image_without_instances_has_empty_targets_of_the_right_kind(annotations):
    image, target = images_of(annotations)[0, 3]
    assert target["boxes"].shape == (0, 4)
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].shape == (0,)
    assert target["masks"].shape == (0, *image.shape[1:])


def test_evaluation_images_come_at_one_size(annotations):
    images = EvaluationImages(annotations, short_side=96, max_size=110, positions=[2, 0])
    assert len(images) == 2
    image, position = images[0]
    assert position == 2
    assert tuple(image.shape) == (3, 110, 82)  # 64 × 48: the long side limits


def sixteen_bit(levels):
    return Image.fromarray(levels.astype(np.uint16) * 257)


def palette(levels):
    """Every grey level an index; two of them transparent, which Pillow warns about when it converts them to RGB."""
    image = Image.fromarray(levels).convert("RGB").quantize(256)
    image.info["transparency"] = bytes([0, 128, *[255] * 254])
    return image


@pytest.mark.parametrize("made", [Image.fromarray, sixteen_bit, palette])
def test_grey_and_palette_images_of_any_depth_are_read(made, tmp_path):
    levels = (np.arange(16 * 12) % 200).astype(np.uint8).reshape(12, 16)
    made(levels).save(tmp_path / "x.png")
    found = read_image(CocoImage(1, tmp_path / "x.png", 12, 16))
    assert torch.equal(found, torch.from_numpy(levels).expand(3, -1, -1))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pixels_are_those_that_annotations_refer_to(suffix, tmp_path):
    """As Pillow decodes them, bit for bit, and not turned: boxes and masks are of the stored pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(noise).save(tmp_path / f"x{suffix}", exif=exif)
    with Image.open(tmp_path / f"x{suffix}") as image:
        stored = np.array(image.convert("RGB"))
    assert stored.shape == (20, 28, 3)
    found = read_image(CocoImage(1, tmp_path / f"x{suffix}", 20, 28))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), stored)


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((480, 640), 240, 1333, (240, 320)),
        ((300, 900), 800, 1333, (444, 1333)),
        ((1, 2000), 800, 1333, (1, 1333)),
    ],
)
def test_scaled_size(size, short, longest, expected):
    assert scaled_size(*size, short, longest) == expected


def copied(hard_set, folder):
    """The set in a folder of its own, read; its files can be changed."""
    shutil.copytree(hard_set.folder, folder)
    return read_annotations(folder / hard_set.path.name, folder)


def test_files_that_do_not_fit_their_annotation_any_more(hard_set, tmp_path):
    annotations = copied(hard_set, tmp_path / "set")
    images = images_of(annotations)
    Image.new("RGB", (60, 41)).save(annotations.images[3].path)
    annotations.images[4].path.write_text("no image")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(annotations.images[0].path, exif=exif)
    with pytest.raises(
        CocoDataError, match=r"has 41 × 60 pixels, but its annotation says 40 × 60 \(height × width\)$"
    ):
        images[0, 3]
    with pytest.raises(CocoDataError, match=r"0080\.png is no image that can be decoded"):
        images[0, 4]
    with pytest.raises(
        CocoDataError, match=r"48 × 64 \(height × width\); it is an image .*set image_orientation: upright"
    ):
        images[0, 0]


def test_an_error_in_a_worker_process_reads_like_one_here(hard_set, tmp_path):
    annotations = copied(hard_set, tmp_path / "set")
    Image.new("RGB", (64, 49)).save(annotations.images[0].path)
    images = EvaluationImages(annotations, short_side=48, max_size=64)
    with pytest.raises(CocoDataError) as caught:
        list(evaluation_loader(images, batch_size=2, num_workers=1, pin_memory=False))
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "has 49 × 64 pixels, but its annotation says 48 × 64" in str(caught.value)
