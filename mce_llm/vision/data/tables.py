"""Images in tables: hub data sets, directories that `save_to_disk` wrote, and parquet files.

The `datasets` library reads them; it is imported when one is opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

from torch import Tensor

from mce_llm.running.messages import cause, nearest_hint
from mce_llm.vision.data.decoding import decode_bytes, read_image
from mce_llm.vision.data.errors import CorruptImageError, ImageDataError
from mce_llm.vision.data.settings import DataSettings
from mce_llm.vision.data.sources import IMAGENET, UNLABELED, ImageSource, Statistics
from mce_llm.vision.data.splits import USUAL, choose_split, is_usual

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "picture")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target")


class TableImages(ImageSource):
    """Images and labels in two columns of a `datasets.Dataset`.

    Args:
        table: The rows.
        name: What to call the source.
        image_column: Its cells hold encoded images: `datasets.Image`, a mapping with `bytes` or `path`, or bytes.
            Found by its type or name where None.
        label_column: Class names or numbers; found likewise. Where there is none at all, the images have no labels.
        statistics: Mean and standard deviation for normalisation.
        folder: Where relative paths in cells begin.

    Raises:
        ImageDataError: There are no rows, or the columns cannot be found or hold something else.
    """

    def __init__(
        self,
        table: Any,
        name: str,
        image_column: str | None = None,
        label_column: str | None = None,
        statistics: Statistics = IMAGENET,
        folder: Path | None = None,
    ) -> None:
        import datasets

        self.name, self.statistics, self.folder = name, statistics, folder
        if not len(table):
            raise ImageDataError(f"{name} has no rows")
        features = table.features
        self._column = _find(name, "image_column", image_column, features, datasets.Image, _IMAGE_COLUMNS)
        if self._column is None:
            raise ImageDataError(
                f"{name} has no column of images that can be recognised; set image_column to one of "
                f"{', '.join(features)}"
            )
        labels = _find(name, "label_column", label_column, features, datasets.ClassLabel, _LABEL_COLUMNS)
        if labels is None:
            self.classes, self.labels = [], [UNLABELED] * len(table)
        else:
            self.classes, self.labels, self.numbered = _labels(name, labels, table, features[labels])
        self._table = table.select_columns([self._column])
        if isinstance(features[self._column], datasets.Image):
            self._table = self._table.cast_column(self._column, datasets.Image(decode=False))
        self.image(0)  # a column of something else is found out now

    @cached_property
    def names(self) -> Sequence[str]:
        """The row of each image as text."""
        return [str(i) for i in range(len(self))]

    def image(self, index: int) -> Tensor:
        """Decode the image in one row.

        Args:
            index: The row.

        Returns:
            RGB as uint8, (3, height, width).

        Raises:
            ImageDataError: The cell holds something else than an encoded image.
            CorruptImageError: It cannot be decoded.
        """
        cell = self._table[index][self._column]
        where = f"the image in row {index} of {self.name}"
        if isinstance(cell, dict):
            data, path = cell.get("bytes"), cell.get("path")
            if data is None and path is not None:
                return read_image(self.folder / path if self.folder else path)
            cell = data
        if isinstance(cell, bytes):
            return decode_bytes(cell, where)
        if cell is None:
            raise CorruptImageError(f"{where} is missing: the cell is empty")
        raise ImageDataError(
            f"column {self._column!r} of {self.name} holds {type(cell).__name__}, not encoded images (bytes, or a mapping "
            "with bytes or path); set image_column to another one"
        )

    def stored(self, index: int) -> bytes:
        """The encoded image in one row; empty where there is none, which is said where the image is needed.

        Args:
            index: The row.
        """
        cell = self._table[index][self._column]
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell.get("bytes")
            if cell is None and path is not None:
                try:
                    return Path(self.folder / path if self.folder else path).read_bytes()
                except OSError:
                    return b""
        return cell if isinstance(cell, bytes) else b""


def open_saved(folder: Path, settings: DataSettings, purpose: str, *, whole: bool) -> TableImages:
    """Open a directory that `save_to_disk` wrote.

    One split that was saved without its name is the training images.

    Args:
        folder: The directory.
        settings: Name the split and the columns.
        purpose: `train` or `eval`.
        whole: Take one split as what is wanted, whatever its name.

    Returns:
        The images.

    Raises:
        ImageDataError: It cannot be read, or has no such split or columns.
    """
    import datasets

    try:
        rows = datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow and datasets raise many types for broken files
        raise ImageDataError(f"{folder} cannot be read as a saved data set: {cause(error)}") from error
    wanted = getattr(settings, f"{purpose}_split")
    if isinstance(rows, dict):
        split = choose_split(list(rows), wanted, purpose, str(folder))
        return _table(rows[split], f"{folder} ({split})", settings)
    own = str(rows.split) if rows.split is not None else "train"
    split = own if whole and wanted is None else choose_split([own], wanted, purpose, str(folder))
    return _table(rows, f"{folder} ({split})", settings)


def open_parquet(pattern: str, settings: DataSettings, purpose: str, *, whole: bool) -> TableImages:
    """Open parquet files.

    Files belong to the split that a part of their names says (`train-00000-of-00002.parquet`, `birds_test.parquet`), or else to
    one of the name's first part. Where no name has a usual one, all files are the training images.

    Args:
        pattern: A file, a directory of them, or a pattern with `*`.
        settings: Name the split and the columns.
        purpose: `train` or `eval`.
        whole: Take the files as what is wanted, where their names say no split.

    Returns:
        The images.

    Raises:
        ImageDataError: There are none, or they cannot be read, or have no such split or columns.
    """
    import datasets

    path = Path(pattern).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    else:
        files = [Path(name) for name in sorted(glob(str(path)))]
    if not files:
        raise ImageDataError(f"no parquet file at {path.absolute()}")
    if others := [file.name for file in files if file.suffix != ".parquet"]:
        raise ImageDataError(
            f"{pattern} names {len(others)} files that are no .parquet files ({', '.join(others[:3])}"
            f"{', …' if len(others) > 3 else ''}); images are named by the directory that holds them"
        )
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file), []).append(str(file))
    wanted = getattr(settings, f"{purpose}_split")
    if not any(is_usual(name) for name in by_split) and wanted not in by_split:
        by_split = {USUAL["eval" if whole else "train"][0]: [str(file) for file in files]}
    split = choose_split(list(by_split), wanted, purpose, pattern)
    try:
        rows = datasets.load_dataset("parquet", data_files=by_split[split], split="train")
    except Exception as error:  # pyarrow and datasets raise many types for broken files
        raise ImageDataError(f"{pattern} cannot be read as parquet: {cause(error)}") from error
    return _table(rows, f"{pattern} ({split})", settings, files[0].parent)


def _split_of(file: Path) -> str:
    parts = re.split(r"[-_.]", file.name.removesuffix(".parquet"))
    return next((part for part in parts if is_usual(part)), parts[0])


def open_hub(hub_id: str, settings: DataSettings, purpose: str) -> TableImages:
    """Open a data set of the Hugging Face hub; it is downloaded to the hub's cache where it is not there yet.

    Args:
        hub_id: `owner/name`.
        settings: Name the split and the columns.
        purpose: `train` or `eval`.

    Returns:
        The images.

    Raises:
        ImageDataError: It cannot be reached, or has no such split or columns.
    """
    import datasets

    wanted = getattr(settings, f"{purpose}_split")
    try:
        split = choose_split(datasets.get_dataset_split_names(hub_id), wanted, purpose, hub_id)
        rows = datasets.load_dataset(hub_id, split=split)
    except ImageDataError:
        raise
    except Exception as error:  # the hub's client and datasets raise many types
        raise ImageDataError(
            f"{hub_id} is no directory here, and cannot be loaded from the hub: {cause(error)}"
        ) from error
    return _table(rows, f"{hub_id} ({split})", settings)


def _table(rows: Any, name: str, settings: DataSettings, folder: Path | None = None) -> TableImages:
    return TableImages(rows, name, settings.image_column, settings.label_column, folder=folder)


def _find(
    name: str, setting: str, wanted: str | None, features: Any, kind: type, usual: Sequence[str]
) -> str | None:
    """The column that is meant: the one asked for, the only one of its kind, or the first with a usual name."""
    if wanted is not None:
        if wanted not in features:
            raise ImageDataError(
                f"{name} has no column {wanted!r}{nearest_hint(wanted, features)} ({setting}); its columns are "
                f"{', '.join(features)}"
            )
        return wanted
    of_kind = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(of_kind) > 1:
        raise ImageDataError(
            f"{name} has several columns that could be meant: set {setting} to {' or '.join(of_kind)}"
        )
    return of_kind[0] if of_kind else next((column for column in usual if column in features), None)


def _labels(name: str, column: str, table: Any, feature: Any) -> tuple[list[str], list[int], bool]:
    """Class names, the label of each row, and whether the names are numbers that stand for names."""
    values = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    if hasattr(feature, "names"):
        return list(feature.names), [UNLABELED if value is None else int(value) for value in values], False
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds <= {int} and not kinds <= {str}:
        found = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise ImageDataError(
            f"column {column!r} of {name} must hold class numbers or names, got {found}; set label_column to another one"
        )
    if kinds == {int}:
        values = [None if value is not None and value < 0 else value for value in values]
    known = sorted({value for value in values if value is not None})
    place = {value: label for label, value in enumerate(known)}
    labels = [UNLABELED if value is None else place[value] for value in values]
    return [str(value) for value in known], labels, kinds == {int}
