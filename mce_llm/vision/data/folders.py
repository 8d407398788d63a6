"""Images in a directory of class folders, the layout that torchvision calls ImageFolder.

Which folder belongs to which split is decided in `mce_llm.vision.data.opening`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mce_llm.vision.data.decoding import read_image
from mce_llm.vision.data.errors import ImageDataError
from mce_llm.vision.data.folder_index import EXTENSIONS, folder_index
from mce_llm.vision.data.sources import IMAGENET, ImageSource, Statistics

_SHOWN = 5


class FolderImages(ImageSource):
    """Images at `root/class/…/file`; the classes are the folders in the order of their names.

    Args:
        root: The directory of class folders.
        name: What to call the source.
        statistics: Mean and standard deviation for normalisation.
        rebuild_index: List the files even if a list was kept.
        class_names: What to call the classes, where their folders have other names.

    Raises:
        ImageDataError: There are no class folders, or one without images.
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
        if not index.classes:
            raise ImageDataError(
                f"{root} holds no class folders; images are looked for at {root}/<class>/<file>"
            )
        empty = [name for name, count in zip(index.classes, index.counts, strict=True) if not count]
        if empty:
            shown = ", ".join(empty[:_SHOWN]) + (", …" if len(empty) > _SHOWN else "")
            raise ImageDataError(
                f"{len(empty)} of the {len(index.classes)} class folders in {root} hold no image ({shown}); remove them, "
                f"or put images there ({', '.join(EXTENSIONS)})"
            )
        self.root, self.name, self.statistics = root, name, statistics
        self.classes = [(class_names or {}).get(folder, folder) for folder in index.classes]
        self.labels = [label for label, count in enumerate(index.counts) for _ in range(count)]
        self._files = index.files

    @property
    def names(self) -> Sequence[str]:
        """`class/file` of each image."""
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
