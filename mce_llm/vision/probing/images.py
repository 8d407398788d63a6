"""Labelled images for a probe: opened, checked, and encoded by an encoder that does not learn."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn

from mce_llm.running.processes import say
from mce_llm.vision.data import (
    UNLABELED,
    DataSettings,
    ImageDataError,
    ImageSource,
    class_count,
    eval_view,
    open_images,
    view_loader,
    with_classes_of,
)
from mce_llm.vision.probing.features import Features, extract_features


def open_labelled(data: DataSettings) -> tuple[ImageSource, ImageSource]:
    """The images to train on and those to evaluate on, all with labels that mean the same in both.

    Classes are matched by name (`with_classes_of`). The images for evaluation may be of some of the classes only: they are
    then judged among all that were trained on, and that is said.

    Args:
        data: Where they are.

    Returns:
        Both sources; labels of the second are places in the classes of the first, and it is normalised like it.

    Raises:
        ImageDataError: Some cannot be opened, have no label, or are of a class that no training image can have, or the
            training images are of one class.
    """
    train = _all_labelled(open_images(data, "train"))
    if class_count(train) < 2:
        raise ImageDataError(
            f"all images of {train.name} are of one class, {train.classes[train.labels[0]]!r}, so there is nothing to tell "
            "apart and every answer would be right; give images in two class folders or more"
        )
    test = _all_labelled(open_images(data, "eval"))
    test = with_classes_of(train, test)
    if (judged := class_count(test)) < len(train.classes):
        say(
            f"{test.name} has images of {judged} of the {len(train.classes)} classes; they are judged among all "
            f"{len(train.classes)}"
        )
    return train, test


def _all_labelled(source: ImageSource) -> ImageSource:
    if missing := sum(label == UNLABELED for label in source.labels):
        raise ImageDataError(
            f"{missing:,} of the {len(source):,} images of {source.name} have no label, which a classifier needs; choose another "
            "split, sort them into class folders, or for a table set label_column"
        )
    return source


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
