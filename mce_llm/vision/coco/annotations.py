"""What an `instances_*.json` says, checked as a whole and kept small: images, trainable instances, categories.

Reading pixels is the data set's matter; regions that are only for evaluation stay in `ground_truth`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mce_llm.running.messages import cause
from mce_llm.vision.coco.categories import read_categories
from mce_llm.vision.coco.errors import CocoDataError
from mce_llm.vision.coco.images import CocoImage, read_images
from mce_llm.vision.coco.instances import Instance, read_instances
from mce_llm.vision.coco.packing import PackedList
from mce_llm.vision.coco.records import Id, Problems, id_of


@dataclass
class CocoAnnotations:
    """A checked annotation file.

    Attributes:
        path: The file.
        images: All images, in the order of the file.
        instances: The trainable instances of each image: no crowds, no boxes without area or outside their image.
        category_ids: The category id of labels 1, 2, …, ascending.
        category_names: Their names.
        left_out: How many annotations are no training targets, by reason.
        notes: What can be used and should be known, a sentence each.
        ground_truth: The JSON itself, for evaluation; None where it was not asked for.
    """

    path: Path
    images: list[CocoImage]
    instances: PackedList[list[Instance]]
    category_ids: list[Id]
    category_names: list[str]
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    ground_truth: dict[str, Any] | None = None

    def with_instances(self) -> list[int]:
        """The positions of the images that have something to learn."""
        return [i for i in range(len(self.images)) if self.instances[i]]

    def summary(self) -> str:
        """A line on what was read, and one for each note."""
        trainable = sum(len(self.instances[i]) for i in range(len(self.images)))
        empty = len(self.images) - len(self.with_instances())
        left_out = "".join(f", {n} {what}" for what, n in sorted(self.left_out.items()))
        return (
            f"{self.path.name}: {len(self.images)} images ({empty} without instances), {trainable} instances of "
            f"{len(self.category_ids)} categories{left_out}" + "".join(f"\n  {note}" for note in self.notes)
        )


def read_annotations(
    path: Path | str,
    images: Path | str,
    *,
    keep_ground_truth: bool = False,
    limit: int | None = None,
    upright: bool = False,
) -> CocoAnnotations:
    """Read and check an annotation file in COCO's format.

    Ids of images and categories may be whole numbers of any size or texts, each unique; ids of annotations are not
    looked at. Boxes are clipped to their images. Crowd regions, boxes without area or wholly outside their image, and
    masks that are empty or outside are left out of training, as torchvision's references, detectron2 and MMDetection
    do; all of it is counted. Everything else that cannot be right is an error, and all errors are reported together.

    Args:
        path: The JSON with `images`, `annotations` and `categories`.
        images: The folder of the image files.
        keep_ground_truth: Whether to keep the JSON for evaluation.
        limit: Keep the first so many images alone; annotations of the others are not checked.
        upright: Boxes and masks are of the images as their EXIF orientation turns them, not of the stored pixels.

    Returns:
        What it says.

    Raises:
        CocoDataError: No such file or folder, no JSON, missing parts, image files that are not there or have another
            size, unknown image or category ids, ids given twice, boxes, masks, areas or crowd flags in no known form.
    """
    path, folder = Path(path).expanduser(), Path(images).expanduser()
    content = _content(path, folder)
    problems = Problems()
    categories = read_categories(content["categories"], problems)
    records, notes = read_images(content["images"], folder, problems, upright=upright, limit=limit)
    found = read_instances(content["annotations"], records, list(categories), problems, limit=limit)
    problems.raise_all(path)
    records = records[:limit]
    return CocoAnnotations(
        path=path,
        images=records,
        instances=PackedList(found.instances),
        category_ids=list(categories),
        category_names=list(categories.values()),
        left_out=found.left_out,
        notes=[*notes, *found.notes],
        ground_truth=_of_images(content, records) if keep_ground_truth else None,
    )


def _content(path: Path, folder: Path) -> dict[str, Any]:
    missing = [f"there is no file {path}"] if not path.is_file() else []
    missing += [f"there is no folder of images {folder}"] if not folder.is_dir() else []
    if missing:
        raise CocoDataError("; ".join(missing))
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
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


def _of_images(content: dict[str, Any], images: list[CocoImage]) -> dict[str, Any]:
    """The content without what belongs to other images."""
    ids = {image.id for image in images}
    return {
        **content,
        "images": content["images"][: len(images)],
        "annotations": [a for a in content["annotations"] if id_of(a["image_id"]) in ids],
    }
