"""Images in a directory of class folders, the layout that torchvision calls ImageFolder, or in one without any.

Which folder belongs to which split is decided in `mce_llm.vision.data.opening`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mce_llm.vision.data.announcing import announce_once
from mce_llm.vision.data.decoding import read_image
from mce_llm.vision.data.errors import ImageDataError
from mce_llm.vision.data.folder_index import EXTENSIONS, FolderIndex, folder_index
from mce_llm.vision.data.sources import IMAGENET, UNLABELED, ImageSource, Statistics

_SHOWN = 5


class FolderImages(ImageSource):
    """Images at `root/class/…/file`, or without labels at `root/file`; the classes are the folders in the order of their names.

    Hidden files and folders and those of systems (`__MACOSX`, `@eaDir`) are left out; files that are no images by the endings
    of their names are passed over, and said.

    Args:
        root: The directory of class folders.
        name: What to call the source.
        statistics: Mean and standard deviation for normalisation.
        rebuild_index: List the files even if a list was kept.
        class_names: What to call the classes, where their folders have other names.

    Raises:
        ImageDataError: There is no image, a class folder without one, or images in no class folder beside class folders.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        statistics: Statistics = IMAGENET,
        rebuild_index: bool = False,
        class_names: dict[str, str] | None = None,
    ) -> None:
        index = folder_index(root, rebuild=rebuild_index)
        others = _passed_over(index)
        if not index.files:
            raise ImageDataError(
                f"{root} holds no image{others and f'; {others}'}; images are looked for at {root}/<class>/<file>, or without "
                f"labels at {root}/<file> ({', '.join(EXTENSIONS)})"
            )
        if index.loose and index.classes:
            raise ImageDataError(
                f"{root} holds {index.loose} images ({_some(index.files[: index.loose])}) beside {len(index.classes)} folders "
                f"({_some(index.classes)}), and an image in no class folder has no class; move them out or into a class "
                "folder. To pretrain without labels, put all of it into one folder, and name the folder above that"
            )
        empty = [name for name, count in zip(index.classes, index.counts, strict=True) if not count]
        if empty:
            raise ImageDataError(
                f"{len(empty)} of the {len(index.classes)} class folders in {root} hold no image ({_some(empty)})"
                f"{others and f'; {others}'}; remove them, put images there ({', '.join(EXTENSIONS)}), or name the "
                "folder above the class folders"
            )
        if others:
            announce_once(f"{name}: {others}")
        self.root, self.name, self.statistics = root, name, statistics
        self.classes = [(class_names or {}).get(folder, folder) for folder in index.classes]
        self.labels = [UNLABELED] * index.loose
        self.labels += [label for label, count in enumerate(index.counts) for _ in range(count)]
        self._files = index.files

    @property
    def names(self) -> Sequence[str]:
        """`class/file` of each image, or `file`."""
        return self._files

    def image(self, index: int) -> Tensor:
        """Decode one image.

        Args:
            index: Which one.

        Returns:
            RGB as uint8, (3, height, width).

        Raises:
            CorruptImageError: The file cannot be read or decoded.
        """
        return read_image(f"{self.root}/{self._files[index]}")

    def stored(self, index: int) -> bytes:
        """The file of an image; empty where it cannot be read, which is said where the image is needed."""
        try:
            return Path(f"{self.root}/{self._files[index]}").read_bytes()
        except OSError:
            return b""


def _passed_over(index: FolderIndex) -> str:
    """In words, how many files are no images by the endings of their names; empty where there are none."""
    if not index.passed_over:
        return ""
    endings = sorted(index.passed_over, key=lambda ending: (-index.passed_over[ending], ending))
    counts = _some([f"{ending} {index.passed_over[ending]}" for ending in endings])
    return (
        f"{sum(index.passed_over.values()):,} files are passed over, as no images by their names ({counts})"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
