"""Which folders of a directory are splits, and which are classes."""

from __future__ import annotations

from pathlib import Path

from mce_llm.vision.data.announcing import announce_once
from mce_llm.vision.data.folder_index import class_folders
from mce_llm.vision.data.splits import is_usual

_FEW = 6  # directories of more folders are not looked into for splits of unusual names
_SHOWN = 3


def split_folders(root: Path, wanted: str | None) -> list[str]:
    """The folders that are splits of a data set.

    Folders with the usual names (`train`, `Val`, `TEST`) are splits if they are all there is, or if one of them holds
    folders itself; among others and with images in it, `train` is a class (COCO has one). A folder that was asked for
    is a split whatever its name.

    Args:
        root: The directory.
        wanted: The split that was asked for.

    Returns:
        Their names; none where the folders are classes. Where these look like splits, as all hold folders of the same
        names, that is said.

    Raises:
        ImageDataError: A directory cannot be listed.
    """
    folders = class_folders(root)
    splits = [name for name in folders if is_usual(name)]
    if splits and len(splits) < len(folders) and not any(class_folders(root / name) for name in splits):
        splits = []
    if wanted in folders and wanted not in splits:
        splits.append(wanted)
    if not splits and 2 <= len(folders) <= _FEW:
        common = set.intersection(*(set(class_folders(root / name)) for name in folders))
        if len(common) > 1:
            announce_once(
                f"{root}: the classes are its {len(folders)} folders, {', '.join(folders)}. Each holds folders of the same names "
                f"({', '.join(sorted(common)[:_SHOWN])}{', …' if len(common) > _SHOWN else ''}): if they are splits, say so "
                "with train_split and eval_split"
            )
    return splits
