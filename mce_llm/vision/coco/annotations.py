"""What an `instances_*.json` says, checked as a whole and kept small: images, trainable instances, categories.

Reading pixels is the data set's matter; regions that are only for evaluation stay in `ground_truth`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mce_llm.running.messages import cause
from mce_llm.vision.coco.errors import CocoDataError
from mce_llm.vision.coco.masks import is_empty, segmentation_problem
from mce_llm.vision.coco.packing import PackedList

# A box may stick out by this much (annotators' rounding) and is clipped; a box further out belongs to another image.
_MARGIN_PIXELS = 2.0
# Below this a box has no side left once it is float32 in an image of a thousand pixels.
_MIN_SIDE_PIXELS = 0.01
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image as the JSON names it.

    Attributes:
        id: Its id, unique in the file.
        path: The image file.
        height: Rows.
        width: Columns.
    """

    id: int
    path: Path
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One object to be learned.

    Attributes:
        label: Its category, counted 1, 2, … in the order of the ids; 0 is the background.
        box: x0, y0, x1, y1 in pixels, inside the image.
        segmentation: Its mask in one of COCO's forms.
    """

    label: int
    box: tuple[float, float, float, float]
    segmentation: Any


@dataclass
class CocoAnnotations:
    """A checked annotation file.

    Attributes:
        path: The file.
        images: All images, in the order of the file.
        instances: The trainable instances of each image: no crowds, no degenerate boxes.
        category_ids: The category id of labels 1, 2, …, ascending.
        category_names: Their names.
        left_out: How many annotations are no training targets, by reason.
        ground_truth: The JSON itself, for evaluation; None where it was not asked for.
    """

    path: Path
    images: list[CocoImage]
    instances: PackedList[list[Instance]]
    category_ids: list[int]
    category_names: list[str]
    left_out: Counter[str] = field(default_factory=Counter)
    ground_truth: dict[str, Any] | None = None

    def with_instances(self) -> list[int]:
        """The positions of the images that have something to learn."""
        return [i for i in range(len(self.images)) if self.instances[i]]

    def summary(self) -> str:
        """One line on what was read."""
        trainable = sum(len(self.instances[i]) for i in range(len(self.images)))
        empty = len(self.images) - len(self.with_instances())
        left_out = "".join(f", {n} {what}" for what, n in sorted(self.left_out.items()))
        return (
            f"{self.path.name}: {len(self.images)} images ({empty} without instances), {trainable} instances of "
            f"{len(self.category_ids)} categories{left_out}"
        )


def read_annotations(
    path: Path | str, images: Path | str, *, keep_ground_truth: bool = False, limit: int | None = None
) -> CocoAnnotations:
    """Read and check an annotation file in COCO's format.

    Crowd regions, boxes without area and empty segmentations are left out and counted. Everything else that cannot be
    right is an error, and all errors are reported together.

    Args:
        path: The JSON with `images`, `annotations` and `categories`.
        images: The folder of the image files.
        keep_ground_truth: Whether to keep the JSON for evaluation.
        limit: Keep the first so many images alone.

    Returns:
        What it says.

    Raises:
        CocoDataError: No such file or folder, no JSON, missing parts, image files that are not there, unknown image or
            category ids, ids given twice, boxes outside their image, masks in no known form.
    """
    path, folder = Path(path).expanduser(), Path(images).expanduser()
    content = _content(path, folder)
    problems = _Problems()
    if limit is not None:
        content = _first_images(content, limit)
    categories = sorted(
        (c for c in content["categories"] if _has(c, ("id", "name"), "category", problems)),
        key=lambda c: c["id"],
    )
    ids = [int(c["id"]) for c in categories]
    _no_duplicates(ids, "category id", problems)
    records = _images(content["images"], folder, problems)
    _no_duplicates([image.id for image in records], "image id", problems)
    instances, left_out = _instances(
        content["annotations"], records, {category: n for n, category in enumerate(ids, start=1)}, problems
    )
    problems.raise_all(path)
    return CocoAnnotations(
        path=path,
        images=records,
        instances=PackedList(instances),
        category_ids=ids,
        category_names=[str(c["name"]) for c in categories],
        left_out=left_out,
        ground_truth=content if keep_ground_truth else None,
    )


class _Problems:
    """Problems by kind, the first few of each with their place."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}

    def add(self, kind: str, place: str) -> None:
        self._places.setdefault(kind, []).append(place)

    def raise_all(self, path: Path) -> None:
        if self._places:
            lines = [
                f"{len(places)} × {kind}: {', '.join(places[:_SHOWN])}{', …' if len(places) > _SHOWN else ''}"
                for kind, places in self._places.items()
            ]
            raise CocoDataError("".join([f"{path} cannot be used:", *(f"\n- {line}" for line in lines)]))


def _content(path: Path, folder: Path) -> dict[str, Any]:
    missing = [f"there is no file {path}"] if not path.is_file() else []
    missing += [f"there is no folder of images {folder}"] if not folder.is_dir() else []
    if missing:
        raise CocoDataError("; ".join(missing))
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CocoDataError(f"{path} is not JSON: {cause(error)}") from error
    lacking = [
        name
        for name in ("images", "annotations", "categories")
        if not isinstance(content, dict) or not isinstance(content.get(name), list)
    ]
    if lacking:
        raise CocoDataError(
            f"{path} has no list of {', '.join(lacking)}: it is not COCO's instances format (captions, keypoints and "
            "test files without annotations cannot be trained or judged on)"
        )
    if not content["images"] or not content["categories"]:
        raise CocoDataError(f"{path} has {'no images' if not content['images'] else 'no categories'}")
    return content


def _first_images(content: dict[str, Any], limit: int) -> dict[str, Any]:
    kept = content["images"][:limit]
    ids = {image.get("id") for image in kept if isinstance(image, dict)}
    return {
        **content,
        "images": kept,
        "annotations": [
            a for a in content["annotations"] if not isinstance(a, dict) or a.get("image_id") in ids
        ],
    }


def _has(record: Any, names: tuple[str, ...], what: str, problems: _Problems) -> bool:
    missing = names if not isinstance(record, dict) else tuple(n for n in names if n not in record)
    if missing:
        number = record.get("id", "?") if isinstance(record, dict) else repr(record)[:20]
        problems.add(f"{what} without {', '.join(missing)}", f"{what} {number}")
    return not missing


def _no_duplicates(ids: list[int], what: str, problems: _Problems) -> None:
    for value, count in Counter(ids).items():
        if count > 1:
            problems.add(f"{what} given more than once", str(value))


def _images(records: list[Any], folder: Path, problems: _Problems) -> list[CocoImage]:
    here = set(os.listdir(folder))  # one listing instead of 118,000 questions
    found = []
    for record in records:
        if not _has(record, ("id", "file_name", "height", "width"), "image", problems):
            continue
        name = str(record["file_name"])
        if name not in here and not (folder / name).is_file():
            problems.add(f"image file that is not in {folder}", name)
        if not all(isinstance(record[side], int) and record[side] > 0 for side in ("height", "width")):
            problems.add("image whose height and width are no whole numbers above 0", name)
            continue
        found.append(CocoImage(int(record["id"]), folder / name, record["height"], record["width"]))
    return found


def _instances(
    records: list[Any], images: list[CocoImage], labels: dict[int, int], problems: _Problems
) -> tuple[list[list[Instance]], Counter[str]]:
    position = {image.id: i for i, image in enumerate(images)}
    found: list[list[Instance]] = [[] for _ in images]
    left_out: Counter[str] = Counter()
    for record in records:
        if not _has(record, ("id", "image_id", "category_id", "bbox"), "annotation", problems):
            continue
        place = f"annotation {record['id']}"
        if record["image_id"] not in position:
            problems.add("annotation of an unknown image", f"{place} (image {record['image_id']})")
            continue
        if record["category_id"] not in labels:
            problems.add("unknown category", f"{place} (category {record['category_id']})")
            continue
        at = position[record["image_id"]]
        image = images[at]
        box, problem = _box(record["bbox"], image)
        if problem:
            problems.add(problem, f"{place} (image {image.id}, {record['bbox']})")
            continue
        segmentation = record.get("segmentation")
        if segmentation is None:
            problems.add("annotation without a segmentation, which Mask R-CNN needs", place)
            continue
        problem = segmentation_problem(segmentation, image.height, image.width)
        if problem:
            problems.add("bad segmentation", f"{place} ({problem})")
        elif record.get("iscrowd"):
            left_out["crowd regions"] += 1
        elif box[2] - box[0] < _MIN_SIDE_PIXELS or box[3] - box[1] < _MIN_SIDE_PIXELS:
            left_out["boxes without area"] += 1
        elif is_empty(segmentation):
            left_out["empty segmentations"] += 1
        else:
            found[at].append(Instance(labels[record["category_id"]], box, segmentation))
    return found, left_out


def _box(bbox: Any, image: CocoImage) -> tuple[tuple[float, float, float, float], str | None]:
    """x, y, width, height as corners inside the image."""
    try:
        x, y, width, height = (float(value) for value in bbox)
    except (TypeError, ValueError):
        return (0.0, 0.0, 0.0, 0.0), "box that is not four numbers"
    outer = (x, y, x + width, y + height)
    lowest, highest = -_MARGIN_PIXELS, _MARGIN_PIXELS
    inside = (
        width >= 0
        and height >= 0
        and outer[0] >= lowest
        and outer[1] >= lowest
        and outer[2] <= image.width + highest
        and outer[3] <= image.height + highest
    )
    if not inside:  # not a number is inside nothing
        return outer, "box outside its image (x, y, width, height in pixels)"
    return (
        max(outer[0], 0.0),
        max(outer[1], 0.0),
        min(outer[2], float(image.width)),
        min(outer[3], float(image.height)),
    ), None
