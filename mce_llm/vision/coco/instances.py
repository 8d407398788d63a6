"""The annotations of a file: which of them are objects to be learned, and what of them cannot be right.

Ids of annotations are not looked at: they name nothing here, and the evaluation gives its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from mce_llm.vision.coco.images import CocoImage
from mce_llm.vision.coco.masks import is_empty, is_outside, segmentation_problem
from mce_llm.vision.coco.records import (
    MOST_PIXELS,
    Id,
    Problems,
    are_near,
    id_of,
    is_number,
    other_form,
    shown,
)

# Below this a box has no side left once it is float32 in an image of a thousand pixels.
_MIN_SIDE_PIXELS = 0.01
# Further out than annotators' rounding.
_MARGIN_PIXELS = 2.0
# So many boxes that are all alike are no accident.
_MANY = 8

_CROWD = "crowd regions"

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Instance:
    """One object to be learned.

    Attributes:
        label: Its category, counted 1, 2, … in the order of the ids; 0 is the background.
        box: x0, y0, x1, y1 in pixels, inside the image.
        segmentation: Its mask in one of COCO's forms.
    """

    label: int
    box: Box
    segmentation: Any


@dataclass
class Annotations:
    """What `read_instances` found.

    Attributes:
        instances: The trainable instances of each image.
        left_out: How many annotations are no training targets, by reason.
        notes: What can be used and should be known.
    """

    instances: list[list[Instance]]
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def read_instances(
    records: Sequence[Any],
    images: Sequence[CocoImage],
    categories: Collection[Id],
    problems: Problems,
    *,
    limit: int | None,
) -> Annotations:
    """Read and check the annotations.

    Args:
        records: The file's `annotations`.
        images: All images of the file.
        categories: Their ids in the order of the labels.
        problems: Where what is wrong is noted.
        limit: How many of the images are used, from the first on; annotations of the others are passed over.

    Returns:
        The instances of the images that are used, with what was left out.
    """
    position = {image.id: n for n, image in enumerate(images)}
    labels = {identity: label for label, identity in enumerate(categories, start=1)}
    used = len(images) if limit is None else min(limit, len(images))
    found = Annotations([[] for _ in range(used)])
    boxes = _Boxes()
    seen: Counter[str] = Counter()
    for n, record in enumerate(records):
        lacking = [
            k for k in ("image_id", "category_id", "bbox") if not isinstance(record, dict) or k not in record
        ]
        if lacking:
            problems.add(f"annotation without {', '.join(lacking)}", _place(n, record))
            continue
        at, label = (
            _known(record, name, table, n, problems)
            for name, table in (("image_id", position), ("category_id", labels))
        )
        if at is None or label is None or at >= used:
            continue
        image = images[at]
        fault = _fault(record, image)
        if fault is not None:
            kind, value = fault
            problems.add(kind, f"{_place(n, record, image)}: {value}")
            continue
        box = boxes.clipped(record["bbox"], image)
        reason = _reason(record, box, image)
        if reason is not None:
            found.left_out[reason] += 1
        else:
            found.instances[at].append(Instance(label, box, record["segmentation"]))
        seen["iscrowd"] += record.get("iscrowd", 0) is None
        seen["area"] += reason in (None, _CROWD) and not record.get("area", 1)
        seen["ignore"] += bool(record.get("ignore"))
    if problem := boxes.problem():
        problems.add(*problem)
    found.notes = [*boxes.notes(), *_notes(seen)]
    return found


class _Boxes:
    """Boxes are clipped to their images; what all of them together say is remembered."""

    def __init__(self) -> None:
        self.count = self.sticking_out = self.far_out = self.like_corners = self.like_shares = 0
        self.furthest = 0.0
        self.example = ""

    def clipped(self, bbox: Sequence[float], image: CocoImage) -> Box:
        """x, y, width, height as corners inside the image."""
        x, y, width, height = (float(value) for value in bbox)
        right, bottom = x + width, y + height
        out = max(-x, -y, right - image.width, bottom - image.height)
        self.count += 1
        self.far_out += out > _MARGIN_PIXELS
        if out > 0.1 and right > 0 and bottom > 0 and x < image.width and y < image.height:
            self.sticking_out += 1
            self.furthest = max(self.furthest, out)
        inside = width <= image.width + _MARGIN_PIXELS and height <= image.height + _MARGIN_PIXELS
        self.like_corners += x < width and y < height and inside
        self.like_shares += max(x, y, width, height) <= 1 and max(image.width, image.height) > _MANY
        self.example = self.example or f"the first is {shown(bbox)} in {image.path.name}"
        x, y = min(max(x, 0.0), float(image.width)), min(max(y, 0.0), float(image.height))
        return x, y, min(max(right, x), float(image.width)), min(max(bottom, y), float(image.height))

    def problem(self) -> tuple[str, str] | None:
        """What is wrong with all boxes together: they are written in another way than COCO's."""
        if self.count < _MANY:
            return None
        if self.like_shares == self.count:
            kind = "boxes that are shares of their image, where COCO's are pixels: multiply them by width and height"
        elif self.like_corners == self.count and 2 * self.far_out > self.count:
            kind = "boxes that look like x0, y0, x1, y1, where COCO's are x, y, width, height: subtract x0 and y0"
        else:
            return None
        return kind, f"all {self.count:,}; {self.example}"

    def notes(self) -> list[str]:
        """That boxes were clipped, and how far they stuck out."""
        if not self.sticking_out:
            return []
        return [
            f"{self.sticking_out:,} boxes stick out of their images, by up to {self.furthest:.1f} pixels, and are clipped "
            "for training (average precision takes them as they are written, as pycocotools does)"
        ]


def _known(record: dict[str, Any], name: str, table: dict[Id, int], n: int, problems: Problems) -> int | None:
    """The place of an image or category that an annotation names."""
    what = name.removesuffix("_id")
    identity = id_of(record[name])
    if identity is None:
        problems.add(
            f"annotation whose {name} is neither a whole number nor text",
            f"{_place(n, record)}: {shown(record[name])}",
        )
    elif identity not in table:
        value = f": {name} {shown(identity)}" if name != "image_id" else ""  # the place has it already
        problems.add(
            f"annotation of an unknown {what}", _place(n, record) + value + other_form(identity, table)
        )
    return None if identity is None else table.get(identity)


def _fault(record: dict[str, Any], image: CocoImage) -> tuple[str, str] | None:
    """What of an annotation cannot be right: its kind, and the value."""
    bbox, area, crowd = record["bbox"], record.get("area"), record.get("iscrowd")
    if not isinstance(bbox, list) or len(bbox) != 4:
        return "box that is not four numbers", shown(bbox)
    if not are_near(bbox):
        if all(is_number(value) for value in bbox):
            return f"box further than {MOST_PIXELS:,} pixels from its image", shown(bbox)
        return "box that is not four numbers", shown(bbox)
    if bbox[2] < 0 or bbox[3] < 0:
        return "box of negative width or height (COCO's are x, y, width, height)", shown(bbox)
    if crowd is not None and not (isinstance(crowd, bool | int | float) and crowd in (0, 1)):
        return "iscrowd that is neither 0 nor 1", shown(crowd)
    if area is not None and not (is_number(area) and area >= 0):
        return "area that is no number from 0 on", shown(area)
    segmentation = record.get("segmentation")
    if segmentation is None:
        return "annotation without a segmentation, which Mask R-CNN needs", shown(bbox)
    problem = segmentation_problem(segmentation, image.height, image.width)
    return ("bad segmentation", problem) if problem else None


def _reason(record: dict[str, Any], box: Box, image: CocoImage) -> str | None:
    """Why an annotation without fault is no training target."""
    if record.get("iscrowd"):
        return _CROWD
    if min(record["bbox"][2:]) < _MIN_SIDE_PIXELS:
        return "boxes without area"
    if box[2] - box[0] < _MIN_SIDE_PIXELS or box[3] - box[1] < _MIN_SIDE_PIXELS:
        return "boxes outside their images"
    if is_empty(record["segmentation"]):
        return "empty segmentations"
    if is_outside(record["segmentation"], image.height, image.width):
        return "masks outside their images"
    return None


def _notes(seen: Counter[str]) -> list[str]:
    texts = {
        "iscrowd": "have iscrowd: null, which is read as 0",
        "area": "have area 0 or null; average precision by size takes the pixels of their masks",
        "ignore": "say ignore, which changes nothing here, as in pycocotools",
    }
    return [f"{seen[name]:,} annotations {text}" for name, text in texts.items() if seen[name]]


def _place(n: int, record: Any, image: CocoImage | None = None) -> str:
    """Where an annotation stands: its index, its id and its image."""
    if not isinstance(record, dict):
        return f"annotations[{n}] {shown(record)}"
    parts = [f"id {shown(record['id'])}"] if "id" in record else []
    if image is not None:
        parts.append(f"image {image.path.name}")
    elif "image_id" in record:
        parts.append(f"image_id {shown(record['image_id'])}")
    return f"annotations[{n}] ({', '.join(parts)})" if parts else f"annotations[{n}]"
