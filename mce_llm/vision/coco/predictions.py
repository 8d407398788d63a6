"""What a detector says of the images of a set, in COCO's result format, from all processes together.

How good it is, is judged in `evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mce_llm.running.processes import gather
from mce_llm.vision.coco.annotations import CocoAnnotations
from mce_llm.vision.coco.errors import CocoEvaluationError
from mce_llm.vision.coco.masks import mask_to_segmentation, paste_mask
from mce_llm.vision.coco.records import Id


def detect(
    detector: nn.Module, images: list[Tensor], sizes: list[tuple[int, int]], device: torch.device
) -> list[dict[str, Tensor]]:
    """Find the objects in images.

    Args:
        detector: In evaluation mode.
        images: uint8 (3, H, W), resized for the detector.
        sizes: Height and width of the images as they were before, to which boxes and masks are scaled.
        device: Of the detector.

    Returns:
        For each image, on the CPU: `boxes` float32 (R, 4) as corners, `labels` int64 (R,), `scores` float32 (R,)
        descending, `masks` bool (R, height, width).
    """
    with torch.no_grad():
        outputs = detector([image.to(device, non_blocking=True) for image in images])
    found = []
    for image, size, output in zip(images, sizes, outputs, strict=True):
        scale = torch.tensor([size[1] / image.shape[2], size[0] / image.shape[1]]).repeat(2)
        boxes = output["boxes"].float().cpu() * scale
        squares = output["masks"].float().cpu()
        masks = [paste_mask(square[0], box, *size) for square, box in zip(squares, boxes, strict=True)]
        found.append(
            {
                "boxes": boxes,
                "labels": output["labels"].cpu(),
                "scores": output["scores"].float().cpu(),
                "masks": torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
            }
        )
    return found


def results_of(found: dict[str, Tensor], image_id: Id, category_ids: Sequence[Id]) -> list[dict[str, Any]]:
    """Write the detections of an image as COCO's results.

    Args:
        found: What `detect` gave.
        image_id: COCO's id of the image.
        category_ids: COCO's id of labels 1, 2, ….

    Returns:
        A dict a detection: image_id, category_id, bbox (x, y, width, height), score, segmentation (run lengths).
    """
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label) - 1],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(score),
            "segmentation": mask_to_segmentation(mask),
        }
        for (x0, y0, x1, y1), label, score, mask in zip(
            found["boxes"].tolist(), found["labels"], found["scores"], found["masks"], strict=True
        )
    ]


def predict(
    detector: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[int]]],
    annotations: CocoAnnotations,
    device: torch.device,
    precision: AbstractContextManager[Any],
) -> tuple[list[dict[str, Any]], list[int]]:
    """Run a detector over this process's images; it is left in the mode that it was in.

    Args:
        detector: Not wrapped for data parallelism, as processes may have different numbers of images.
        batches: Images and their positions among the annotations' images.
        annotations: Ids and sizes.
        device: Of the detector.
        precision: Autocast, or nothing.

    Returns:
        The results, and the positions that were seen.
    """
    was_training = detector.training
    detector.eval()
    results: list[dict[str, Any]] = []
    seen: list[int] = []
    try:
        with precision:
            for images, positions in batches:
                records = [annotations.images[position] for position in positions]
                found = detect(detector, images, [(r.height, r.width) for r in records], device)
                for record, detections in zip(records, found, strict=True):
                    results += results_of(detections, record.id, annotations.category_ids)
                seen += positions
    finally:
        detector.train(was_training)
    return results, seen


def gather_results(
    results: list[dict[str, Any]], seen: list[int], image_ids: Sequence[Id]
) -> list[dict[str, Any]]:
    """Bring the results of all processes together, in the order of the images. All processes call this.

    Args:
        results: Of this process.
        seen: The positions of its images.
        image_ids: COCO's id of each image, of all processes.

    Returns:
        All results, in every process.

    Raises:
        CocoEvaluationError: An image was seen twice, or not at all.
    """
    parts = gather((results, seen))
    num_images = len(image_ids)
    counts = torch.bincount(
        torch.tensor([position for _, positions in parts for position in positions], dtype=torch.int64),
        minlength=num_images,
    )
    twice, never = int((counts > 1).sum()), int((counts[:num_images] == 0).sum())
    if twice or never:
        raise CocoEvaluationError(
            f"of {num_images} images {twice} were judged by more than one process and {never} by none"
        )
    everything = [result for part, _ in parts for result in part]
    place = {identity: position for position, identity in enumerate(image_ids)}
    # Stable: the detections of an image stay in the order of their scores.
    return sorted(everything, key=lambda result: place[result["image_id"]])
