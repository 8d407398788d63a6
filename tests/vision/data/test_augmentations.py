import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mce_llm.vision.data import AugmentationSettings, classify_view, eval_view, train_views
from mce_llm.vision.data.augmentations import (
    as_pillow,
    as_tensor,
    blur,
    blur_kernel_size,
    crop_and_resize,
    jitter,
)

NOTHING = {
    "crop_scale_min": 1.0,
    "jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "solarize_probability_2": 0.0,
    "flip_probability": 0.0,
    "blur": "false",
}
PLAIN = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


@pytest.fixture
def photograph(draw):
    """A uint8 image with colours side by side, as decoding gives it: photograph(side)."""

    def make(side):
        return torch.from_numpy(np.array(draw(5, (side, side)))).permute(2, 0, 1)

    return make


def views(image, size, seed=0, **changes):
    torch.manual_seed(seed)
    return train_views(size, *PLAIN, AugmentationSettings(**{**NOTHING, **changes}))(image)


@pytest.mark.parametrize("side", [40, 90])  # Pillow's form and torch's
def test_each_step_is_torchvision_s(side, photograph):
    image = photograph(side)
    crop = v2.RandomResizedCrop(24, scale=(0.2, 1))
    torch.manual_seed(3)
    ours = as_tensor(crop_and_resize(image, crop))
    torch.manual_seed(3)
    theirs = crop(as_pillow(image) if side < 64 else image)
    assert torch.equal(ours, as_tensor(theirs))

    change = v2.ColorJitter(0.4, 0.4, 0.2, 0.1)
    torch.manual_seed(4)
    ours = as_tensor(jitter(image, change))
    torch.manual_seed(4)
    assert torch.equal(ours, as_tensor(change(as_pillow(image))))


@pytest.mark.parametrize("kernel", [3, 23])
def test_blur_in_two_passes_is_the_same(kernel, photograph):
    image, blurring = photograph(64), v2.GaussianBlur(kernel, (0.1, 2.0))
    torch.manual_seed(5)
    ours = blur(image, blurring)
    torch.manual_seed(5)
    theirs = blurring(image)
    assert not torch.equal(ours, image)
    # Sums in another order differ by rounding, which turns a value near n + 1/2 the other way.
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= (0 if kernel == 3 else 1)
    assert difference.float().mean() < 1e-3


def test_without_any_step_only_the_size_changes(photograph):
    image = photograph(32)
    first, second = views(image, 32)
    assert torch.equal(first, second)
    assert torch.equal((first * 255).round().byte(), image)
    assert first.dtype == torch.float32
    assert first.shape == (3, 32, 32)


def changed(view, image):
    return not torch.equal((view * 255).round().byte(), image)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"crop_scale_min": 0.2, "crop_scale_max": 0.3}, (True, True)),
        ({"jitter_probability": 1.0}, (True, True)),
        ({"grayscale_probability": 1.0}, (True, True)),
        ({"flip_probability": 1.0}, (True, True)),
        ({"blur": "true", "blur_probability_1": 1.0, "blur_probability_2": 0.0}, (True, False)),
        ({"blur": "true", "blur_probability_1": 0.0, "blur_probability_2": 1.0}, (False, True)),
        ({"blur": "false", "blur_probability_1": 1.0, "blur_probability_2": 1.0}, (False, False)),
        ({"blur": "auto", "blur_probability_2": 1.0}, (False, False)),  # 32 pixels
        ({"solarize_probability_1": 1.0}, (True, False)),
        ({"solarize_probability_2": 1.0}, (False, True)),
    ],
)
def test_each_setting_does_what_it_says(changes, expected, photograph):
    image = photograph(32)
    drawn = views(image, 32, **changes)
    assert tuple(changed(view, image) for view in drawn) == expected


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_strength_of_the_jitter_counts(name, photograph):
    image = photograph(32)
    off = {f"jitter_{each}": 0.0 for each in ("brightness", "contrast", "saturation", "hue")}
    assert not changed(views(image, 32, **{**off, "jitter_probability": 1.0})[0], image)
    assert changed(views(image, 32, **{**off, "jitter_probability": 1.0, f"jitter_{name}": 0.4})[0], image)


def test_grey_and_flip_and_solarise_are_exact(photograph):
    image = photograph(32)
    flipped, _ = views(image, 32, flip_probability=1.0)
    assert torch.equal((flipped * 255).round().byte(), image.flip(-1))
    grey, _ = views(image, 32, grayscale_probability=1.0)
    assert torch.equal(grey[0], grey[1])
    _, solarised = views(image, 32, solarize_probability_2=1.0, solarize_threshold=100)
    assert torch.equal((solarised * 255).round().byte(), torch.where(image >= 100, 255 - image, image))
    # By default as Pillow does it, whose `solarize` the official recipe calls without a threshold.
    _, solarised = views(image, 32, solarize_probability_2=1.0)
    pillow = ImageOps.solarize(Image.fromarray(image.permute(1, 2, 0).numpy()))
    assert torch.equal((solarised * 255).round().byte(), torch.from_numpy(np.array(pillow)).permute(2, 0, 1))


def test_probabilities_are_met(photograph):
    image = photograph(16)
    transform = train_views(16, *PLAIN, AugmentationSettings(**{**NOTHING, "flip_probability": 0.3}))
    torch.manual_seed(0)
    drawn = [view for _ in range(100) for view in transform.draw(image)]
    share = np.mean([torch.equal(view, image.flip(-1)) for view in drawn])
    assert abs(share - 0.3) < 0.13  # four standard deviations of 200 coins
    assert all(torch.equal(view, image) or torch.equal(view, image.flip(-1)) for view in drawn)


def test_the_official_recipe_is_the_default():
    official = AugmentationSettings()
    first, second = train_views(224, *PLAIN).views
    assert (first.blur_probability, first.solarize_probability) == (1.0, 0.0)
    assert (second.blur_probability, second.solarize_probability) == (0.1, 0.2)
    assert (official.crop_scale_min, official.jitter_probability, official.grayscale_probability) == (
        0.2,
        0.8,
        0.2,
    )
    assert [view.blur_probability for view in train_views(32, *PLAIN).views] == [0.0, 0.0]


@pytest.mark.parametrize(("size", "kernel"), [(8, 3), (32, 3), (64, 7), (96, 9), (160, 17), (224, 23)])
def test_the_blur_s_kernel_is_a_tenth_of_the_image(size, kernel):
    assert blur_kernel_size(size) == kernel


def test_views_are_normalised(photograph):
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    image = photograph(16)
    expected = F.normalize(image.float() / 255, mean, std)
    for view in (
        eval_view(16, mean, std)(image),
        train_views(16, mean, std, AugmentationSettings(**NOTHING))(image)[1],
    ):
        assert torch.allclose(view, expected, atol=1e-6)
    # A batch is normalised in parts; each part as a view alone.
    transform = eval_view(224, mean, std)
    batch = torch.randint(0, 256, (5, 3, 224, 224), dtype=torch.uint8)
    alone = torch.stack([transform.normalize(image) for image in batch])
    assert torch.equal(transform.normalize(batch), alone)


def test_evaluation_cuts_out_the_centre(photograph):
    same = photograph(28)
    assert torch.equal(eval_view(28, *PLAIN).draw(same)[0], same)
    wide = torch.from_numpy(np.zeros((64, 200, 3), np.uint8)).permute(2, 0, 1)
    wide[:, :, 70:130] = 255
    # 64 → 32 (of 28·256/224), so 56 of the middle 200 columns are left: all of them white.
    (view,) = eval_view(28, *PLAIN).draw(wide)
    assert view.shape == (3, 28, 28)
    assert view.min() == 255
    tall = wide.transpose(1, 2)
    assert eval_view(28, *PLAIN).draw(tall)[0].shape == (3, 28, 28)


def test_the_classifier_s_view_is_a_crop_that_may_be_flipped(photograph):
    image = photograph(32)
    transform = classify_view(32, *PLAIN, crop_scale_min=1.0)
    # The whole image always, with at most the ratio changed: compare the two that keep it.
    drawn = set()
    for seed in range(12):
        torch.manual_seed(seed)
        view = (transform(image) * 255).round().byte()
        drawn.add(torch.equal(view, image) * 1 + torch.equal(view, image.flip(-1)) * 2)
    assert {1, 2} <= drawn
    torch.manual_seed(0)
    assert not torch.equal(classify_view(32, *PLAIN)(image), classify_view(32, *PLAIN)(image))


def test_the_source_image_is_left_alone(photograph):
    image = photograph(32)
    before = image.clone()
    everything = {"blur": "true", "jitter_probability": 1.0, "solarize_probability_1": 1.0}
    views(image, 32, **everything)
    eval_view(32, *PLAIN)(image)
    assert torch.equal(image, before)


def test_pillow_s_form_and_back(photograph):
    image = photograph(16)
    pixels = as_pillow(image)
    assert isinstance(pixels, Image.Image)
    assert torch.equal(as_tensor(pixels), image)
    assert torch.equal(as_tensor(as_pillow(image.contiguous())), image)
