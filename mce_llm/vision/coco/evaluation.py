"""COCO's average precision, of boxes and of masks, over all categories and for each, by faster-coco-eval.

Predictions are made in `predictions`; here they are only judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from mce_llm.vision.coco.errors import CocoEvaluationError
from mce_llm.vision.coco.masks import is_empty, mask_to_segmentation, segmentation_to_mask
from mce_llm.vision.coco.records import Id, id_of, in_order

KINDS = ("bbox", "segm")
# In the order of COCO's summary; small, medium, large are areas below 32², between, and above 96² pixels.
STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_ABSENT = -1  # what COCO says where there is nothing to find


@dataclass
class Scores:
    """How well predictions fit, as shares in [0, 1]; None where no instance of that kind is there to be found.

    Attributes:
        overall: By name, see `STATISTICS`; AP is the mean over IoU 0.50, 0.55, …, 0.95 and categories.
        by_category: AP of each category id.
    """

    overall: dict[str, float | None]
    by_category: dict[Id, float | None]


def evaluate_detections(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str
) -> Scores:
    """Judge predictions as COCO does: crowd regions swallow predictions that fall on them, at most 100 an image count.

    Ids are numbered anew, in their order: the evaluator takes an annotation of id 0 for no match, annotations with the
    same id for one, and knows no texts.

    Args:
        ground_truth: The content of an `instances_*.json` with masks, as `read_annotations` checks it. Where `area` is
            missing, null or 0 it is the pixels of the mask, where `iscrowd` is missing or null it is 0. Polygons that
            enclose nothing become a mask without pixels.
        results: In COCO's result format: image_id, category_id, score, and bbox or segmentation.
        kind: `bbox` or `segm`. Sizes of predictions are those of the boxes or of the masks, accordingly.

    Returns:
        The scores, those of pycocotools.

    Raises:
        CocoEvaluationError: Predictions for images that are not in the ground truth, or of unknown categories.
    """
    images = _numbers(ground_truth["images"])
    categories = _numbers(ground_truth["categories"])
    for name, known in (("image_id", images), ("category_id", categories)):
        if unknown := {result[name] for result in results} - known.keys():
            raise CocoEvaluationError(
                f"predictions have {len(unknown)} values of {name} that the annotations do not have "
                f"({in_order(unknown)[:3]}…); they were made on other data"
            )
    sizes = {
        images[image["id"]]: (int(image["height"]), int(image["width"])) for image in ground_truth["images"]
    }
    # The evaluator notes things in what it is given, and would take sizes of masks from boxes where both are there.
    truth = COCO(
        {
            "images": [{"id": n, "height": h, "width": w} for n, (h, w) in sizes.items()],
            "categories": [{"id": n, "name": str(identity)} for identity, n in categories.items()],
            "annotations": [
                _complete(annotation, n, images, categories, sizes)
                for n, annotation in enumerate(ground_truth["annotations"], start=1)
            ],
        }
    )
    field = "bbox" if kind == "bbox" else "segmentation"
    found = truth.loadRes(
        [
            {
                "image_id": images[result["image_id"]],
                "category_id": categories[result["category_id"]],
                "score": result["score"],
                field: result[field],
            }
            for result in results
        ]
    )
    evaluator = COCOeval_faster(truth, found, kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    overall = {name: _share(value) for name, value in zip(STATISTICS, evaluator.stats, strict=False)}
    by_number = _by_category(evaluator)
    return Scores(overall, {identity: by_number[n] for identity, n in categories.items()})


def category_table(names: Mapping[Id, str], scores: Mapping[str, Scores]) -> str:
    """Per-category AP in percent as text, boxes and masks side by side, best first.

    Args:
        names: Of each category id.
        scores: By kind.

    Returns:
        Lines of equal layout; a dash where a category is not in the images.
    """
    first = scores[KINDS[0]].by_category
    order = sorted(names, key=lambda c: (-(v if (v := first.get(c)) is not None else -1.0), names[c]))
    width = max([8, *(len(name) for name in names.values())])
    lines = [f"{'category':<{width}}  {'box AP':>7}  {'mask AP':>7}"]
    for category in order:
        cells = [percent(scores[kind].by_category.get(category)) for kind in KINDS]
        lines.append(f"{names[category]:<{width}}  {cells[0]:>7}  {cells[1]:>7}")
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """A share in percent with one digit, or a dash."""
    return "–" if share is None else f"{100 * share:.1f}"


def _numbers(records: Sequence[Mapping[str, Any]]) -> dict[Id, int]:
    """1, 2, … for the ids of records, in their order, in which pycocotools goes through them."""
    ids = [identity for record in records if (identity := id_of(record["id"])) is not None]
    return {identity: n for n, identity in enumerate(in_order(ids), start=1)}


def _complete(
    annotation: Mapping[str, Any],
    number: int,
    images: Mapping[Id, int],
    categories: Mapping[Id, int],
    sizes: Mapping[int, tuple[int, int]],
) -> dict[str, Any]:
    """The annotation with all that the evaluator asks for, and nothing else."""
    image = images[annotation["image_id"]]
    segmentation = annotation["segmentation"]
    if is_empty(segmentation):  # the evaluator would take four numbers for a box
        segmentation = mask_to_segmentation(np.zeros(sizes[image], dtype=np.uint8))
    return {
        "id": number,
        "image_id": image,
        "category_id": categories[annotation["category_id"]],
        "iscrowd": int(annotation.get("iscrowd") or 0),
        "bbox": [float(value) for value in annotation["bbox"]],
        "area": float(annotation.get("area") or segmentation_to_mask(segmentation, *sizes[image]).sum()),
        "segmentation": segmentation,
    }


def _by_category(evaluator: Any) -> dict[int, float | None]:
    """AP of each category: the mean of the precisions over IoU and recall, all areas, 100 detections an image."""
    precision = np.asarray(evaluator.eval["precision"])  # (IoU, recall, category, area, detections)
    result: dict[int, float | None] = {}
    for row, category in enumerate(evaluator.params.catIds):
        values = precision[:, :, row, 0, -1]
        values = values[values > _ABSENT]
        result[int(category)] = float(values.mean()) if values.size else None
    return result


def _share(value: float) -> float | None:
    return None if value == _ABSENT else float(value)
