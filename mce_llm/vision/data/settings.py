"""What can be said about the images of a run: where they are, how many of them, and how views are drawn from them.

How a file and a command line are read into these dataclasses is in `mce_llm.running.settings`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mce_llm.running.settings import raise_all

AUTO_TRUE_FALSE = ("auto", "true", "false")
# Blur takes the detail out of images that have little: the usual recipes for CIFAR leave it out.
SMALLEST_BLURRED_SIZE = 64
# For a run that goes on: settings that say how images are found and kept, and not which they are.
HOW_ALONE = ("data_dir", "download", "cache_images", "rebuild_index")


@dataclass
class DataSettings:
    """Which images a run sees; shared by pretraining and everything that looks at what was learned."""

    dataset: str = field(
        metadata={
            "help": "cifar10, cifar100, stl10, imagenette or shapes; a directory of class folders, or of images without "
            "labels, with or without split folders above them; a directory that save_to_disk wrote; .parquet files; or a hub id."
        }
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Where the images for evaluation are, if not in another split of `dataset`; the same forms."
        },
    )
    data_dir: str = field(
        default="data",
        metadata={
            "help": "Where cifar10, cifar100, stl10 and imagenette are, in torchvision's layout, or are put by download."
        },
    )
    train_split: str | None = field(
        default=None,
        metadata={"help": "Split to train on; train by default. stl10 has unlabeled and train+unlabeled."},
    )
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on; by default the first there is of val, validation, valid, test."
        },
    )
    image_size: int = field(default=224, metadata={"help": "Side of the views in pixels."})
    limit: int | None = field(
        default=None,
        metadata={"help": "Take this many training images, always the same, as many of each class."},
    )
    eval_limit: int | None = field(
        default=None, metadata={"help": "Take this many images for evaluation, as `limit` does."}
    )
    eval_from_train: int | None = field(
        default=None,
        metadata={
            "help": "Keep so many training images, always the same and of each class its share, away from training, and "
            "evaluate on them in place of a split: for choosing settings without looking at test images."
        },
    )
    num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that prepare images, for each training process; chosen by default."},
    )
    download: bool = field(
        default=False,
        metadata={"help": "Let torchvision download cifar10, cifar100, stl10 or imagenette to data_dir."},
    )
    image_column: str | None = field(
        default=None,
        metadata={"help": "Column of the images in hub, saved and parquet data; found by default."},
    )
    label_column: str | None = field(
        default=None,
        metadata={"help": "Column of the labels in hub, saved and parquet data; found by default."},
    )
    cache_images: str = field(
        default="auto",
        metadata={"help": "Keep decoded images in memory: true, false, or auto for data sets up to 1 GB."},
    )
    rebuild_index: bool = field(
        default=False, metadata={"help": "List the files of a directory anew instead of using the kept list."}
    )
    mean: list[float] | None = field(
        default=None,
        metadata={"help": "Mean of the red, green and blue values in [0, 1]; the data set's by default."},
    )
    std: list[float] | None = field(
        default=None, metadata={"help": "Their standard deviations; the data set's by default."}
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Some cannot be used; the message lists them all.
        """
        problems = []
        for name in ("dataset", "eval_dataset"):
            if (value := getattr(self, name)) is not None and not value.strip():
                problems.append(f"{name} is empty; give a name, a directory, .parquet files or a hub id")
        if self.image_size < 8:
            problems.append(f"image_size must be at least 8 pixels, got {self.image_size}")
        for name in ("limit", "eval_limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                problems.append(f"{name} must be at least 1, got {value}; leave it out to take all images")
        if self.eval_from_train is not None:
            if self.eval_from_train < 1:
                problems.append(
                    f"eval_from_train must be at least 1, got {self.eval_from_train}; leave it out for none"
                )
            problems += [
                f"{name} and eval_from_train both say what to evaluate on; leave one of them out"
                for name in ("eval_dataset", "eval_split")
                if getattr(self, name) is not None
            ]
        if self.num_workers is not None and self.num_workers < 0:
            problems.append(
                f"num_workers must be 0 (load in the main process) or more, got {self.num_workers}"
            )
        self.cache_images = _auto_true_false("cache_images", self.cache_images, problems)
        if (self.mean is None) != (self.std is None):
            problems.append("mean and std go together; give both or neither")
        problems += statistics_problems(self.mean, self.std)
        raise_all(problems)


def when_not_given(data: DataSettings) -> dict[str, str]:
    """What settings mean that are not given: the same, for a run that goes on, as being given this value by name."""
    return {"train_split": "train", "eval_dataset": data.dataset}


@dataclass
class AugmentationSettings:
    """How two views of an image are drawn; the defaults are those of Matrix-SSL's own recipe.

    The names follow the order of the steps. What ends in 1 or 2 is about the first or the second view alone.
    """

    crop_scale_min: float = field(
        default=0.2, metadata={"help": "Least share of the image's area that a crop may have."}
    )
    crop_scale_max: float = field(default=1.0, metadata={"help": "Greatest share."})
    jitter_probability: float = field(default=0.8, metadata={"help": "How often colours are jittered."})
    jitter_brightness: float = field(default=0.4, metadata={"help": "Brightness times 1 ± this."})
    jitter_contrast: float = field(default=0.4, metadata={"help": "Contrast times 1 ± this."})
    jitter_saturation: float = field(default=0.2, metadata={"help": "Saturation times 1 ± this."})
    jitter_hue: float = field(default=0.1, metadata={"help": "Hue plus or minus this share of a turn."})
    grayscale_probability: float = field(default=0.2, metadata={"help": "How often all colour is taken out."})
    blur: str = field(
        default="auto",
        metadata={
            "help": "Blur at all: true, false, or auto for views of at least 64 pixels; CIFAR goes without. The kernel is "
            "a tenth of the view wide, as in SimCLR."
        },
    )
    blur_probability_1: float = field(
        default=1.0, metadata={"help": "How often the first view is blurred, where blur is on."}
    )
    blur_probability_2: float = field(default=0.1, metadata={"help": "How often the second one is."})
    blur_sigma_min: float = field(
        default=0.1, metadata={"help": "Least standard deviation of the blur in pixels."}
    )
    blur_sigma_max: float = field(default=2.0, metadata={"help": "Greatest one."})
    solarize_probability_1: float = field(
        default=0.0, metadata={"help": "How often bright pixels of the first view are inverted."}
    )
    solarize_probability_2: float = field(
        default=0.2, metadata={"help": "How often those of the second are."}
    )
    solarize_threshold: float = field(
        default=128, metadata={"help": "Values from here on, of 0 to 255, are bright."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "How often left and right change places."})

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Some cannot be used; the message lists them all.
        """
        problems = []
        for name in (
            "jitter_probability",
            "grayscale_probability",
            "blur_probability_1",
            "blur_probability_2",
            "solarize_probability_1",
            "solarize_probability_2",
            "flip_probability",
        ):
            if not 0 <= (value := getattr(self, name)) <= 1:
                problems.append(f"{name} must be in [0, 1], got {value}")
        if not 0 < self.crop_scale_min <= self.crop_scale_max <= 1:
            problems.append(
                "0 < crop_scale_min <= crop_scale_max <= 1 must hold, got "
                f"{self.crop_scale_min} and {self.crop_scale_max}"
            )
        for name in ("jitter_brightness", "jitter_contrast", "jitter_saturation"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                problems.append(f"{name} must be 0 (off) or more, got {value}")
        if not 0 <= self.jitter_hue <= 0.5:
            problems.append(f"jitter_hue must be in [0, 0.5], got {self.jitter_hue}")
        if not 0 < self.blur_sigma_min <= self.blur_sigma_max < math.inf:
            problems.append(
                "0 < blur_sigma_min <= blur_sigma_max must hold, got "
                f"{self.blur_sigma_min} and {self.blur_sigma_max}"
            )
        if not 0 <= self.solarize_threshold <= 255:
            problems.append(f"solarize_threshold must be in [0, 255], got {self.solarize_threshold}")
        self.blur = _auto_true_false("blur", self.blur, problems)
        raise_all(problems)

    def blurs(self, image_size: int) -> bool:
        """Whether views of this size are blurred at all."""
        return image_size >= SMALLEST_BLURRED_SIZE if self.blur == "auto" else self.blur == "true"


def statistics_problems(mean: Sequence[float] | None, std: Sequence[float] | None) -> list[str]:
    """What is wrong with the values that images are normalised with; None is not looked at."""
    problems = []
    if mean is not None and not (len(mean) == 3 and all(0 <= value <= 1 for value in mean)):
        problems.append(f"mean must be three numbers in [0, 1], got {mean}")
    if std is not None and not (len(std) == 3 and all(0 < value <= 1 for value in std)):
        problems.append(f"std must be three numbers in (0, 1], got {std}")
    return problems


def _auto_true_false(name: str, value: str | bool, problems: list[str]) -> str:
    """The value in small letters; a bool is welcome from Python."""
    text = str(value).lower()
    if text not in AUTO_TRUE_FALSE:
        problems.append(f"{name} must be auto, true or false, got {value!r}")
    return text
