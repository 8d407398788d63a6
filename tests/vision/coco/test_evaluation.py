"""Average precision: that of pycocotools, on everything that has ever made evaluators disagree."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mce_llm.vision.coco import CocoEvaluationError, evaluate_detections
from mce_llm.vision.coco.evaluation import KINDS, STATISTICS, category_table
from mce_llm.vision.coco.masks import mask_to_segmentation

HEIGHT, WIDTH = 150, 200
IDS = [1, 5, 9]


def ellipse(rng, near=None):
    """A blob of any of COCO's three sizes, or one like another."""
    if near is None:
        center, radii = rng.uniform([20, 20], [WIDTH - 20, HEIGHT - 20]), rng.uniform(4, 70, 2)
    else:
        center, radii = near[0] + rng.normal(0, 4, 2), near[1] * rng.uniform(0.7, 1.3, 2)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (center, radii), ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1


def record(mask):
    rows, columns = np.where(mask)
    x, y = int(columns.min()), int(rows.min())
    box = [float(v) for v in (x, y, columns.max() + 1 - x, rows.max() + 1 - y)]
    return {"bbox": box, "segmentation": mask_to_segmentation(mask)}


def random_case(seed):
    """Ground truth with crowds, empty images and a category that never occurs; predictions near it, ties included."""
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * n + 1, "height": HEIGHT, "width": WIDTH, "file_name": ""} for n in range(8)]
    annotations, results = [], []
    for image in images[:6]:
        for _ in range(rng.integers(1, 6)):
            shape, mask = ellipse(rng)
            if not mask.any():
                continue
            category = int(rng.choice(IDS))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "iscrowd": int(rng.random() < 0.2),
                    "area": float(mask.sum()),
                    **record(mask),
                }
            )
            for _ in range(rng.integers(0, 4)):
                _, guess = ellipse(rng, shape)
                if guess.any():
                    label = category if rng.random() < 0.8 else int(rng.choice(IDS))
                    # Scores with two digits: some are equal.
                    results.append(
                        {
                            "image_id": image["id"],
                            "category_id": label,
                            "score": round(rng.random(), 2),
                            **record(guess),
                        }
                    )
    _, stray = ellipse(rng)
    results.append({"image_id": images[7]["id"], "category_id": 1, "score": 0.5, **record(stray)})
    categories = [{"id": n, "name": f"c{n}"} for n in [*IDS, 77]]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def reference_scores(truth, results, kind):
    kept = ("image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        found = coco.loadRes([{n: copy.deepcopy(r[n]) for n in kept} for r in results])
        evaluator = COCOeval(coco, found, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, 2]
    by_category = {
        c: (float(v.mean()) if (v := precision[:, :, k][precision[:, :, k] > -1]).size else None)
        for k, c in enumerate(evaluator.params.catIds)
    }
    return dict(zip(STATISTICS, evaluator.stats, strict=True)), by_category


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_pycocotools(seed, kind):
    truth, results = random_case(seed)
    assert any(a["iscrowd"] for a in truth["annotations"]) or seed  # seed 0 has crowds
    before = copy.deepcopy((truth, results))
    scores = evaluate_detections(truth, results, kind)
    overall, by_category = reference_scores(truth, results, kind)
    assert 0.05 < scores.overall["AP"] < 0.95
    for name, value in overall.items():
        assert scores.overall[name] == (None if value == -1 else pytest.approx(value, abs=1e-9)), name
    assert scores.by_category.keys() == by_category.keys()
    for category, value in by_category.items():
        assert scores.by_category[category] == (None if value is None else pytest.approx(value, abs=1e-9))
    assert scores.by_category[77] is None
    assert (truth, results) == before  # the evaluators write into what they are given


def test_the_order_of_the_results_does_not_matter_and_crowds_do():
    """The control: without the crowd flags the figures are others, so the comparison above does see them."""
    truth, results = random_case(0)
    same = evaluate_detections(truth, results[::-1], "bbox").overall["AP50"]
    assert same == pytest.approx(evaluate_detections(truth, results, "bbox").overall["AP50"], abs=0.05)
    plain = copy.deepcopy(truth)
    for item in plain["annotations"]:
        item["iscrowd"] = 0
    assert evaluate_detections(plain, results, "bbox").overall["AP"] != pytest.approx(
        evaluate_detections(truth, results, "bbox").overall["AP"], abs=1e-6
    )


def test_perfect_predictions_score_one_and_none_score_zero():
    truth, _ = random_case(1)
    perfect = [
        {**{n: a[n] for n in ("image_id", "category_id", "bbox", "segmentation")}, "score": 0.9}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    for kind in KINDS:
        assert evaluate_detections(truth, perfect, kind).overall["AP"] == pytest.approx(1)
        assert evaluate_detections(truth, [], kind).overall["AP"] == 0


@pytest.mark.parametrize("form", ["run lengths", "polygons"])
def test_missing_area_and_crowd_flags_are_filled_in(form):
    truth, results = random_case(2)
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    if form == "polygons":
        for a in truth["annotations"]:
            x, y, w, h = a["bbox"]
            a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            a["area"] = w * h
    bare = copy.deepcopy(truth)
    for a in bare["annotations"]:
        del a["area"], a["iscrowd"]
    whole = evaluate_detections(truth, results, "segm").overall
    assert evaluate_detections(bare, results, "segm").overall == pytest.approx(whole, abs=1e-12)


def test_predictions_of_other_data_are_refused():
    truth, results = random_case(0)
    with pytest.raises(CocoEvaluationError, match=r"1 values of image_id .*\[4242\]"):
        evaluate_detections(truth, [{**results[0], "image_id": 4242}], "bbox")
    with pytest.raises(CocoEvaluationError, match=r"1 values of category_id .*\[2\]"):
        evaluate_detections(truth, [{**results[0], "category_id": 2}], "segm")


def test_the_table_has_every_category():
    truth, results = random_case(0)
    scores = {kind: evaluate_detections(truth, results, kind) for kind in KINDS}
    lines = category_table({c["id"]: c["name"] for c in truth["categories"]}, scores).splitlines()
    assert lines[0].split() == ["category", "box", "AP", "mask", "AP"]
    assert len(lines) == 5
    assert lines[-1].split() == ["c77", "–", "–"]
    assert len({len(line) for line in lines}) == 1
