"""A small set in COCO's format with everything that is awkward about it, and detectors small enough to run in a test."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference

from mce_llm.vision.coco import DetectorSettings

CATEGORIES = [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}]
TINY = {
    "backbone": "timm/resnet18",
    "backbone_kwargs": '{"channels": [8, 8, 8, 8], "stem_width": 8}',
    "norm": "bn",
    "fpn_channels": 8,
    "box_head_features": 16,
    "mask_head_channels": 8,
    "anchor_sizes": [8, 16, 32, 48, 64],
    "rpn_before_nms_train": 60,
    "rpn_after_nms_train": 30,
    "rpn_before_nms_eval": 60,
    "rpn_after_nms_eval": 30,
    "rpn_samples": 32,
    "roi_samples": 16,
    "score_threshold": 0.0,
    "detections_per_image": 5,
}


def reference_decode(runs):
    """pycocotools' decoding, whose array type warns under NumPy 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return reference.decode(runs)


@pytest.fixture
def decode():
    return reference_decode


def rectangle(height, width, x, y, w, h):
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def compressed(mask):
    runs = reference.encode(np.asfortranarray(mask))
    return {"size": [int(n) for n in runs["size"]], "counts": runs["counts"].decode()}


def uncompressed(mask):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def annotation(number, image, category, box, segmentation, crowd=0):
    x, y, w, h = box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [float(v) for v in (x, y, w, h)],
        "area": float(w * h),
        "iscrowd": crowd,
        "segmentation": segmentation,
    }


def polygon(x, y, w, h):
    return [[float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]]


def hard_content():
    """Six images: polygons; grey with run lengths; tall with a crowd; empty; a crowd alone; only what is dropped."""
    sizes = {7: (48, 64), 12: (48, 64), 31: (64, 48), 55: (40, 60), 80: (48, 64), 81: (48, 64)}
    images = [{"id": n, "file_name": f"{n:012}.png", "height": h, "width": w} for n, (h, w) in sizes.items()]
    two = [*polygon(4, 6, 10, 12), *polygon(20, 6, 10, 12)]
    annotations = [
        annotation(1, 7, 3, (4, 6, 26, 12), two),
        annotation(2, 7, 17, (34, 20, 20, 20), polygon(34, 20, 20, 20)),
        annotation(3, 12, 90, (8, 4, 16, 32), uncompressed(rectangle(48, 64, 8, 4, 16, 32))),
        annotation(4, 31, 3, (6, 8, 30, 20), compressed(rectangle(64, 48, 6, 8, 30, 20))),
        annotation(5, 31, 17, (2, 34, 44, 26), uncompressed(rectangle(64, 48, 2, 34, 44, 26)), crowd=1),
        annotation(6, 80, 17, (0, 0, 40, 40), uncompressed(rectangle(48, 64, 0, 0, 40, 40)), crowd=1),
        annotation(7, 81, 3, (5, 5, 0, 12), polygon(5, 5, 0, 12)),
        annotation(8, 81, 3, (5, 5, 10, 12), [[5.0, 5.0, 6.0, 6.0]]),
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_set(folder: Path, content):
    """Images whose instances are bright on dark noise, and the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in content["images"]:
        noise = np.random.default_rng(record["id"]).integers(
            0, 60, (record["height"], record["width"]), np.uint8
        )
        for item in content["annotations"]:
            if item["image_id"] == record["id"] and not item["iscrowd"]:
                x, y, w, h = (int(v) for v in item["bbox"])
                noise[y : y + h, x : x + w] += 100 + item["category_id"]
        pixels = noise if record["id"] == 12 else np.stack([noise, noise // 2, 255 - noise], axis=-1)
        Image.fromarray(pixels).save(folder / record["file_name"])
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return SimpleNamespace(folder=folder, path=path, content=content)


@pytest.fixture(scope="session")
def hard_set(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("coco") / "images", hard_content())


@pytest.fixture
def tiny_settings():
    def make(**changes):
        values = {**TINY, **changes}
        return DetectorSettings(**{name: value for name, value in values.items() if value is not None})

    return make
