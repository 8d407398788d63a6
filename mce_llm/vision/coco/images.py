"""The images of an annotation file: their entries, and whether the files are those that the entries mean.

Pixels are decoded in `dataset`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.vision.coco.records import Id, Problems, id_of, shown, whole_number
from mce_llm.vision.data import CorruptImageError
from mce_llm.vision.data.decoding import ImageHeader, read_header

# Headers that are looked at before a run; all others are checked when their image is decoded.
_LOOKED_AT = 1000
_THREADS = 8  # a network file system answers many as fast as one


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image as the JSON names it.

    Attributes:
        id: Its id, unique in the file.
        path: The image file.
        height: Rows.
        width: Columns.
        upright: Whether boxes and masks are of the image as EXIF turns it upright; else of the pixels as stored.
    """

    id: Id
    path: Path
    height: int
    width: int
    upright: bool = False


def read_images(
    records: Sequence[Any], folder: Path, problems: Problems, *, upright: bool, limit: int | None
) -> tuple[list[CocoImage], list[str]]:
    """Read and check the entries, and the headers of up to 1,000 of the files.

    Args:
        records: The file's `images`.
        folder: Where the files are.
        problems: Where what is wrong is noted.
        upright: What boxes and masks are of, see `CocoImage`.
        limit: How many of them are used, from the first on; files of the others are not looked for.

    Returns:
        The images, all of them, and notes on what can be used and should be known.
    """
    here = set(os.listdir(folder))  # one listing instead of 118,000 questions
    used = len(records) if limit is None else limit
    found, present = [], []
    for n, record in enumerate(records):
        place = f"images[{n}]"
        lacking = [
            k
            for k in ("id", "file_name", "height", "width")
            if not isinstance(record, dict) or k not in record
        ]
        if lacking:
            problems.add(f"image without {', '.join(lacking)}", f"{place} {shown(record)}")
            continue
        identity, name = id_of(record["id"]), record["file_name"]
        height, width = whole_number(record["height"]), whole_number(record["width"])
        if identity is None:
            problems.add("image id that is neither a whole number nor text", f"{place} {shown(record['id'])}")
            continue
        if not isinstance(name, str) or not name or "\0" in name:
            problems.add("image whose file_name is no text", f"{place} (id {identity}: {shown(name)})")
            continue
        if height is None or width is None:
            sides = f"{shown(record['height'])} × {shown(record['width'])}"
            problems.add(
                "image whose height and width are no whole numbers above 0", f"{place} ({name}: {sides})"
            )
            continue
        image = CocoImage(identity, folder / name, height, width, upright)
        found.append(image)
        if n < used:
            if name in here or _is_file(image.path):
                present.append(image)
            else:
                problems.add(f"image file that is not in {folder}", name + _elsewhere(name, here))
    for identity, count in Counter(image.id for image in found).items():
        if count > 1:
            problems.add("image id given more than once", str(identity))
    notes = _look_at_files(present, problems, upright=upright)
    twice = sum(count > 1 for count in Counter(image.path for image in found).values())
    if twice:
        notes.append(f"{twice:,} files are listed as more than one image, each with annotations of its own")
    return found, notes


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for any file
        return False


def orientation_problem(image: CocoImage, header: ImageHeader) -> str | None:
    """Say that a file has the size that its entry says if the other `image_orientation` is chosen, and not by this one.

    Args:
        image: The entry.
        header: Of the file.

    Returns:
        The problem and the remedy, or None.
    """
    said = (image.height, image.width)
    if header.size(upright=image.upright) == said or header.size(upright=not image.upright) != said:
        return None
    if image.upright:
        return (
            "image whose annotations are of its pixels as they are stored, not of the image that its EXIF orientation "
            "gives: set image_orientation: stored"
        )
    return (
        "image whose annotations are of the image that its EXIF orientation gives, not of its pixels as they are stored: "
        "set image_orientation: upright"
    )


def _look_at_files(images: list[CocoImage], problems: Problems, *, upright: bool) -> list[str]:
    """Compare sizes with headers: of all, or of as many as are quick to read, from all over the list."""
    step = max(len(images) / _LOOKED_AT, 1)
    chosen = [images[int(n * step)] for n in range(min(len(images), _LOOKED_AT))]
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(_header, chosen))
    undecided = 0
    for image, header in zip(chosen, headers, strict=True):
        if isinstance(header, str):
            problems.add("image file that cannot be opened", header)
        elif (size := header.size(upright=image.upright)) != (image.height, image.width):
            problems.add(
                orientation_problem(image, header)
                or "image of another size (height × width) than its entry says",
                f"{image.path.name} ({size[0]} × {size[1]}, its entry says {image.height} × {image.width})",
            )
        elif header.orientation != 1 and header.size(upright=True) == header.size(upright=False):
            undecided += 1
    if not undecided:
        return []
    of = f"of {len(chosen):,} images that were looked at, " if len(chosen) < len(images) else ""
    taken, other = ("upright", "stored") if upright else ("stored", "upright")
    return [
        f"{of}{undecided:,} have an EXIF orientation that does not show in their size; their annotations are taken to be "
        f"of the image as {taken} (image_orientation; {other} is the other choice)"
    ]


def _header(image: CocoImage) -> ImageHeader | str:
    try:
        return read_header(image.path)
    except CorruptImageError as error:
        return str(error)


def _elsewhere(name: str, here: set[str]) -> str:
    """Where a file that is not there may be meant to be."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return f" (but {last} is there)" if last != name and last in here else ""
