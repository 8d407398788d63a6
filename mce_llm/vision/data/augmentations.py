"""Views of an image: two random ones for pretraining, one for training a classifier, one for evaluation.

Every step is torchvision's. What is chosen here is the form in which each step is fastest; how random numbers are
seeded, and how views become batches, is in `mce_llm.vision.data.loading`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mce_llm.vision.data.settings import AugmentationSettings

# One convolution with a square kernel is cheaper than two, along rows and columns, below this size.
_SMALLEST_SEPARABLE_KERNEL = 11
# Up to this many, Pillow crops and resizes faster than torch, which takes a third of its time for large images.
_FEW_PIXELS = 64 * 64
# Normalising takes four passes: so many values at a time stay in a core's own cache.
_VALUES_AT_A_TIME = 2**17
_CROP_RATIO = (3 / 4, 4 / 3)

# uint8 in either of the forms that torchvision works on.
Pixels = Tensor | Image.Image


class ViewTransform(ABC):
    """What makes views of an image. A loader draws them as uint8, and normalises a batch of them at once.

    Args:
        image_size: Side of the views in pixels.
        mean: Of each channel, in [0, 1].
        std: Of each channel.
    """

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.image_size = image_size
        self.mean, self.std = (torch.tensor(list(values)).view(3, 1, 1) for values in (mean, std))

    @abstractmethod
    def draw(self, image: Tensor) -> tuple[Tensor, ...]:
        """Draw the views; random numbers are taken from torch's default generator.

        Args:
            image: RGB as uint8, (3, height, width).

        Returns:
            The views as uint8, (3, image_size, image_size) each.
        """

    def normalize(self, views: Tensor) -> Tensor:
        """(x / 255 − mean) / std for each channel.

        Args:
            views: uint8, (…, 3, image_size, image_size).

        Returns:
            float32 of the same shape.
        """
        flat = views.reshape(-1, *views.shape[-3:])
        out = torch.empty(flat.shape, dtype=torch.float32)
        step = max(1, _VALUES_AT_A_TIME // flat[:1].numel())
        for source, target in zip(flat.split(step), out.split(step), strict=True):
            floats = F.to_dtype(source, torch.float32, scale=True)
            target.copy_(F.normalize(floats, self.mean, self.std, inplace=True))
        return out.view(views.shape)


class SingleView(ViewTransform):
    """What makes one view of an image."""

    def __call__(self, image: Tensor) -> Tensor:
        """Draw the view of one image and normalise it: float32, (3, image_size, image_size)."""
        return self.normalize(*self.draw(image))


class RandomView(SingleView):
    """A random view: crop and resize, colour jitter, grey, blur, solarise, flip.

    The steps, their order and their parameters are those of Matrix-SSL's official code (and of MoCo v2's, BYOL's and
    MEC's before it).

    Args:
        image_size: Side of the view in pixels.
        mean: Of each channel, in [0, 1].
        std: Of each channel.
        settings: Ranges and probabilities that all views have in common.
        blur_probability: This view's.
        solarize_probability: This view's.
    """

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: AugmentationSettings,
        blur_probability: float,
        solarize_probability: float,
    ) -> None:
        super().__init__(image_size, mean, std)
        self.settings = settings
        self.blur_probability = blur_probability
        self.solarize_probability = solarize_probability
        scale = (settings.crop_scale_min, settings.crop_scale_max)
        self._crop = v2.RandomResizedCrop(image_size, scale=scale, ratio=_CROP_RATIO)
        self._jitter = v2.ColorJitter(
            settings.jitter_brightness,
            settings.jitter_contrast,
            settings.jitter_saturation,
            settings.jitter_hue,
        )
        kernel = blur_kernel_size(image_size)
        self._blur = v2.GaussianBlur(kernel, (settings.blur_sigma_min, settings.blur_sigma_max))

    def draw(self, image: Tensor) -> tuple[Tensor]:
        """Draw a view.

        Args:
            image: RGB as uint8, (3, height, width).

        Returns:
            The view as uint8, (3, image_size, image_size).
        """
        settings = self.settings
        # All coins at once: small calls of torch are most of the work for a small image.
        jittered, grey, blurred, solarized, flipped = torch.rand(5).tolist()
        pixels = crop_and_resize(image, self._crop)
        if jittered < settings.jitter_probability:
            pixels = jitter(pixels, self._jitter)
        if grey < settings.grayscale_probability:
            pixels = F.rgb_to_grayscale(pixels, num_output_channels=3)
        if blurred < self.blur_probability:
            pixels = blur(pixels, self._blur)
        if solarized < self.solarize_probability:
            pixels = F.solarize(pixels, settings.solarize_threshold)
        if flipped < settings.flip_probability:
            pixels = F.horizontal_flip(pixels)
        return (as_tensor(pixels),)


class Views(ViewTransform):
    """Several views of one image, drawn one after the other.

    Args:
        views: Transforms that normalise alike.
    """

    def __init__(self, *views: ViewTransform) -> None:
        self.views = views
        self.image_size, self.mean, self.std = views[0].image_size, views[0].mean, views[0].std

    def draw(self, image: Tensor) -> tuple[Tensor, ...]:
        """Draw all of them.

        Args:
            image: RGB as uint8, (3, height, width).

        Returns:
            The views as uint8.
        """
        return tuple(drawn for view in self.views for drawn in view.draw(image))

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Draw the views of one image and normalise them: float32, (3, image_size, image_size) each."""
        return tuple(self.normalize(view) for view in self.draw(image))


class CropAndFlip(SingleView):
    """A random crop, resized, and half the time flipped: what linear classifiers and fine-tuning train on.

    Args:
        image_size: Side of the view in pixels.
        mean: Of each channel, in [0, 1].
        std: Of each channel.
        crop_scale_min: Least share of the image's area that a crop may have.
    """

    def __init__(
        self, image_size: int, mean: Sequence[float], std: Sequence[float], crop_scale_min: float
    ) -> None:
        super().__init__(image_size, mean, std)
        self._crop = v2.RandomResizedCrop(image_size, scale=(crop_scale_min, 1.0), ratio=_CROP_RATIO)

    def draw(self, image: Tensor) -> tuple[Tensor]:
        """Draw the view.

        Args:
            image: RGB as uint8, (3, height, width).

        Returns:
            The view as uint8.
        """
        flipped = torch.rand(()).item() < 0.5
        pixels = crop_and_resize(image, self._crop)
        return (as_tensor(F.horizontal_flip(pixels) if flipped else pixels),)


class CentreCrop(SingleView):
    """The shorter side resized to 256/224 of the size, and the centre cut out; nothing is random.

    An image that has the size already is taken as it is.

    Args:
        image_size: Side of the view in pixels.
        mean: Of each channel, in [0, 1].
        std: Of each channel.
    """

    def draw(self, image: Tensor) -> tuple[Tensor]:
        """Cut out the view.

        Args:
            image: RGB as uint8, (3, height, width).

        Returns:
            The view as uint8.
        """
        if image.shape[1:] == (self.image_size, self.image_size):
            return (image,)
        resized = F.resize(image, [round(self.image_size * 256 / 224)])
        return (F.center_crop(resized, [self.image_size]),)


def train_views(
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    settings: AugmentationSettings | None = None,
) -> Views:
    """The two views of pretraining; they differ in how often they are blurred and solarised.

    Args:
        image_size: Their side in pixels.
        mean: Of each channel, in [0, 1]; usually the source's.
        std: Of each channel.
        settings: The official recipe's by default.

    Returns:
        A transform from a uint8 image to two views.
    """
    settings = settings or AugmentationSettings()
    blurs = settings.blurs(image_size)
    chances = (
        (settings.blur_probability_1, settings.solarize_probability_1),
        (settings.blur_probability_2, settings.solarize_probability_2),
    )
    views = [
        RandomView(image_size, mean, std, settings, blur_chance if blurs else 0.0, solarize_chance)
        for blur_chance, solarize_chance in chances
    ]
    return Views(*views)


def classify_view(
    image_size: int, mean: Sequence[float], std: Sequence[float], *, crop_scale_min: float = 0.08
) -> CropAndFlip:
    """The view that classifiers are trained on, as in torchvision's reference training.

    Args:
        image_size: Its side in pixels.
        mean: Of each channel, in [0, 1].
        std: Of each channel.
        crop_scale_min: Least share of the image's area that a crop may have.

    Returns:
        A transform from a uint8 image to one view.
    """
    return CropAndFlip(image_size, mean, std, crop_scale_min)


def eval_view(image_size: int, mean: Sequence[float], std: Sequence[float]) -> CentreCrop:
    """The view for evaluation; nothing about it is random.

    Args:
        image_size: Its side in pixels.
        mean: Of each channel, in [0, 1].
        std: Of each channel.

    Returns:
        A transform from a uint8 image to one view.
    """
    return CentreCrop(image_size, mean, std)


def blur_kernel_size(image_size: int) -> int:
    """Side of the blur's kernel: a tenth of the image's, made odd, and at least 3 (SimCLR, appendix A)."""
    return max(3, image_size // 10 // 2 * 2 + 1)


def crop_and_resize(image: Tensor, transform: v2.RandomResizedCrop) -> Pixels:
    """`RandomResizedCrop` without the search for what else might have to be cropped beside the image."""
    place = transform.make_params([image])
    if image.shape[1] * image.shape[2] <= _FEW_PIXELS:
        return F.resized_crop(as_pillow(image), **place, size=transform.size, antialias=True)
    # Packed with the colours of a pixel side by side, a crop is resized without being packed anew, and stays like that,
    # which is Pillow's layout too.
    crop = F.crop(image, **place).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return F.resize(crop, transform.size, antialias=True)


def jitter(pixels: Pixels, transform: v2.ColorJitter) -> Image.Image:
    """`ColorJitter` in Pillow's form: its change of hue is the faster one of torchvision's two."""
    pixels = as_pillow(pixels)
    steps = transform.make_params([pixels])
    steps["fn_idx"] = steps["fn_idx"].tolist()  # as numbers, they are compared in a tenth of the time
    return transform.transform(pixels, steps)


def blur(pixels: Pixels, transform: v2.GaussianBlur) -> Tensor:
    """`GaussianBlur`, along rows and then along columns: the same sum in a fraction of the operations."""
    image = as_tensor(pixels).contiguous()
    sigma = transform.make_params([image])["sigma"]
    width, height = transform.kernel_size
    if max(width, height) < _SMALLEST_SEPARABLE_KERNEL:
        return F.gaussian_blur(image, [width, height], sigma)
    rows = F.gaussian_blur(image.float(), [width, 1], sigma)  # not rounded before the columns are done
    return F.gaussian_blur(rows, [1, height], sigma).round_().to(torch.uint8)


def as_pillow(pixels: Pixels) -> Image.Image:
    """The same pixels for Pillow."""
    if isinstance(pixels, Image.Image):
        return pixels
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def as_tensor(pixels: Pixels) -> Tensor:
    """The same pixels for torch, (3, height, width)."""
    if isinstance(pixels, Image.Image):
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    return pixels
