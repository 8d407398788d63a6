"""Labelled images for a probe: opened, checked, and encoded by an encoder that does not learn."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn

from mce_llm.vision.data import (
    UNLABELED,
    DataSettings,
    ImageDataError,
    ImageSource,
    eval_view,
    open_images,
    view_loader,
)
from mce_llm.vision.probing.features import Features, extract_features


def open_labelled(data: DataSettings) -> tuple[ImageSource, ImageSource]:
    """The images to train on and those to evaluate on, all with labels, and of the same classes.

    Args:
        data: Where they are.

    Returns:
        Both sources; the second takes its normalisation from the first.

    Raises:
        ImageDataError: Some cannot be opened, have no label, or the classes differ.
    """
    train, test = open_images(data, "train"), open_images(data, "eval")
    for source in (train, test):
        if missing := sum(label == UNLABELED for label in source.labels):
            raise ImageDataError(
                f"{missing:,} of the {len(source):,} images of {source.name} have no label, which a classifier needs; choose "
                "another split, or set label_column"
            )
    if list(train.classes) != list(test.classes):
        only = sorted(set(train.classes) ^ set(test.classes))
        raise ImageDataError(
            f"{train.name} has {len(train.classes)} classes and {test.name} {len(test.classes)}, and they are not the same"
            + (
                f" ({', '.join(only[:5])}{', …' if len(only) > 5 else ''} only in one)"
                if only
                else " in their order"
            )
        )
    return train, test


def encode_images(
    module: nn.Module,
    source: ImageSource,
    like: ImageSource,
    data: DataSettings,
    accelerator: Accelerator,
    batch_size: int,
) -> Features:
    """Features of every image of a source in its evaluation view. All processes call this; all get everything.

    Args:
        module: Images to features, or to logits.
        source: The images.
        like: The source whose mean and standard deviation they are normalised with.
        data: Size and workers.
        accelerator: Of this run.
        batch_size: Images encoded at once by each process.

    Returns:
        The features, in the source's order.
    """
    loader = view_loader(
        source,
        eval_view(data.image_size, like.mean, like.std),
        batch_size,
        shuffle=False,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=data.num_workers,
    )
    return extract_features(module, loader, accelerator, description=f"encoding {source.name}")
