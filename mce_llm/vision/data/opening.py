"""From what the settings say to a source of images: which kind it is, which split, how much of it, kept where."""

from __future__ import annotations

import os
from pathlib import Path

from mce_llm.running.messages import nearest_hint
from mce_llm.vision.data import shapes, torchvision_sets
from mce_llm.vision.data.announcing import announce_once
from mce_llm.vision.data.errors import ImageDataError, NoSuchSplitError
from mce_llm.vision.data.folders import FolderImages
from mce_llm.vision.data.memory import keep_in_memory
from mce_llm.vision.data.settings import DataSettings
from mce_llm.vision.data.sources import ImageSource, Statistics, balanced_indices, share_of_each_class
from mce_llm.vision.data.split_folders import split_folders
from mce_llm.vision.data.splits import USUAL, choose_split
from mce_llm.vision.data.tables import open_hub, open_parquet, open_saved

KNOWN = (*torchvision_sets.SPLITS, "shapes")
_SAVED_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")
_ALREADY_IN_MEMORY = torchvision_sets.ArrayImages


def open_images(settings: DataSettings, split: str = "train") -> ImageSource:
    """Open the images to train on, or to evaluate on.

    A directory is read as what it holds: a saved data set, parquet files, split folders above class folders or images, or
    class folders or images, which are for training unless they are `eval_dataset`. Images in no class folder have no label.

    Args:
        settings: What and how.
        split: `train` or `eval`.

    Returns:
        The source, with no more images than the settings' limit.

    Raises:
        ImageDataError: It cannot be found or used; the message says where it was looked for and what to change.
    """
    if split not in USUAL:
        raise ImageDataError(f"split must be train or eval, got {split!r}")
    separate = split == "eval" and settings.eval_dataset is not None
    source = _open(
        (settings.eval_dataset if separate else None) or settings.dataset,
        settings,
        "train" if settings.eval_from_train is not None else split,
        separate,
    )
    if settings.eval_from_train is not None:
        source = _held_out(source, settings.eval_from_train, split)
    limit = settings.limit if split == "train" else settings.eval_limit
    if limit is not None and limit < len(source):
        source = source.subset(balanced_indices(source.labels, limit))
    if settings.mean is not None and settings.std is not None:
        source.statistics = Statistics((*settings.mean,), (*settings.std,))  # type: ignore[arg-type]
    if not isinstance(getattr(source, "whole", source), _ALREADY_IN_MEMORY):
        source = keep_in_memory(source, settings.cache_images)
    return source


def _held_out(train: ImageSource, count: int, split: str) -> ImageSource:
    """The part of the training images that is held out, for `eval`, or all others."""
    if count >= len(train):
        raise ImageDataError(
            f"eval_from_train {count:,} leaves nothing to train on: {train.name} has {len(train):,} images"
        )
    held = share_of_each_class(train.labels, count)
    if split == "eval":
        part = train.subset(held)
        part.name = f"{train.name}, held out"
        return part
    return train.subset(sorted(set(range(len(train))) - set(held)))


def _open(dataset: str, settings: DataSettings, purpose: str, separate: bool) -> ImageSource:
    wanted = getattr(settings, f"{purpose}_split")
    if dataset in KNOWN and Path(dataset).is_dir():
        announce_once(
            f"{dataset} is the data set of that name, not the directory {Path(dataset).absolute()}; write ./{dataset} for that"
        )
    if dataset == "shapes":
        name = choose_split(list(shapes.COUNTS), wanted, purpose, dataset)
        return shapes.Shapes(name, settings.image_size)
    if dataset in torchvision_sets.SPLITS:
        name = choose_split(torchvision_sets.SPLITS[dataset], wanted, purpose, dataset)
        return torchvision_sets.open_torchvision(dataset, name, settings.data_dir, download=settings.download)
    path = Path(dataset).expanduser()
    if path.suffix == ".parquet" or "*" in path.name:
        return open_parquet(dataset, settings, purpose, whole=separate)
    if path.is_dir():
        return _open_directory(path, settings, purpose, separate)
    if path.exists():
        raise ImageDataError(f"{dataset} is a file; give a directory, or .parquet files")
    if dataset.startswith((".", "/", "~")) or dataset.count("/") != 1:
        raise ImageDataError(_nothing_there(dataset, path))
    return open_hub(dataset, settings, purpose)


def _open_directory(path: Path, settings: DataSettings, purpose: str, separate: bool) -> ImageSource:
    """A directory, by what it holds."""
    if any((path / name).is_file() for name in _SAVED_FILES):
        return open_saved(path, settings, purpose, whole=separate)
    if any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")):
        return open_parquet(str(path), settings, purpose, whole=separate)
    wanted = getattr(settings, f"{purpose}_split")
    splits = split_folders(path, wanted)
    if splits or wanted is not None:
        name = choose_split(splits, wanted, purpose, str(path))
        folder, title = path / name, f"{path} ({name})"
    elif purpose == "train" or separate:
        folder, title = path, str(path)
    else:
        raise NoSuchSplitError(
            f"{path} has no split folders ({', '.join(USUAL['eval'])}), so nothing in it is set apart for evaluation; "
            "set eval_dataset to a directory of class folders, or eval_from_train to how many training images to hold out"
        )
    return FolderImages(folder, title, rebuild_index=settings.rebuild_index)


def _nothing_there(dataset: str, path: Path) -> str:
    """What to say of a name that is neither known nor a path."""
    if "/" not in dataset and os.sep not in dataset:
        return (
            f"there is no data set {dataset!r}{nearest_hint(dataset, KNOWN)}; known are {', '.join(KNOWN)}, and there is no "
            f"directory of that name in {Path.cwd()}"
        )
    above = path.absolute()
    while not above.is_dir():
        above = above.parent
    hint = (
        nearest_hint(path.name, [item.name for item in above.iterdir()])
        if above == path.absolute().parent
        else ""
    )
    return f"there is no directory {path.absolute()}{hint}; the part that exists is {above}"
