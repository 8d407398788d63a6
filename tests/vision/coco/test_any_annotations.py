"""Whatever stands in an annotation file: it is refused at the start, by name, or trained and judged on to the end."""

import copy
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mce_llm.vision.coco import CocoDataError, TrainingImages, evaluate_detections, read_annotations
from mce_llm.vision.coco.evaluation import KINDS
from mce_llm.vision.coco.masks import mask_to_segmentation, segmentation_to_mask

# What people's tools write, and what they should not.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.sampled_from(
        [2**31, 2**63, 2**70, -(2**65), 10**400, 0.5, 7.0, 64.0, -0.0, 1e300, float("nan"), float("inf")]
    ),
    st.sampled_from(
        ["", "7", "a", "0", "null", "1e3", "\0", "..", "000000000012.png", "b'R1'", "R1", "é", "car"]
    ),
    st.lists(st.one_of(st.integers(-5, 80), st.floats(-5, 80), st.none(), st.text(max_size=2)), max_size=5),
    st.lists(st.lists(st.floats(-100, 200), min_size=0, max_size=8), max_size=2),
    st.fixed_dictionaries({"size": st.just([48, 64]), "counts": st.text("0123QRa`o", max_size=6)}),
    st.fixed_dictionaries(
        {"size": st.sampled_from([[48.0, 64.0], [64, 48], [True, 64]]), "counts": st.just([0, 3072])}
    ),
    st.fixed_dictionaries({"size": st.just([48, 64]), "counts": st.lists(st.integers(0, 3072), max_size=3)}),
    st.dictionaries(st.sampled_from(["size", "counts", "id"]), st.integers(0, 9), max_size=2),
)
FIELDS = {
    "images": ["id", "file_name", "height", "width"],
    "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore"],
    "categories": ["id", "name", "supercategory"],
}
CHANGES = st.lists(
    st.one_of(
        *[
            st.tuples(
                st.just(part),
                st.integers(0, 7),
                st.sampled_from([*fields, "remove", "replace", "double"]),
                VALUES,
            )
            for part, fields in FIELDS.items()
        ]
    ),
    min_size=1,
    max_size=3,
)


def change(content, changes):
    for part, n, field, value in changes:
        records = content[part]
        n %= max(len(records), 1)
        if field == "replace":
            records[n : n + 1] = [value]
        elif field == "double":
            records.append(copy.deepcopy(records[n]))
        elif isinstance(records[n], dict):
            if field == "remove":
                records[n].pop(FIELDS[part][n % len(FIELDS[part])], None)
            else:
                records[n][field] = value


def perfect(annotations):
    """Predictions that are the ground truth, with the ids that the file gives."""
    truth = annotations.ground_truth
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in truth["images"]}
    return [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "segmentation": mask_to_segmentation(segmentation_to_mask(a["segmentation"], *sizes[a["image_id"]])),
            "score": 0.9,
        }
        for a in truth["annotations"]
        if not a.get("iscrowd") and segmentation_to_mask(a["segmentation"], *sizes[a["image_id"]]).any()
    ]  # fmt: skip


SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=100, **SETTINGS)
@given(changes=CHANGES)
def test_refused_by_name_or_used_to_the_end(hard_set, tmp_path_factory, changes):
    use(hard_set, tmp_path_factory, changes)


@pytest.mark.slow
@settings(max_examples=4000, **SETTINGS)
@given(changes=CHANGES)
def test_refused_or_used_thousands_of_times(hard_set, tmp_path_factory, changes):
    use(hard_set, tmp_path_factory, changes)


def use(hard_set, tmp_path_factory, changes):
    """Read the changed file, and go all the way with it where it is taken."""
    content = copy.deepcopy(hard_set.content)
    change(content, changes)
    path = tmp_path_factory.mktemp("any") / "changed.json"
    path.write_text(json.dumps(content))
    try:
        found = read_annotations(path, hard_set.folder, keep_ground_truth=True)
    except CocoDataError as error:
        found, message = None, str(error)
    finally:
        shutil.rmtree(path.parent)
    if found is None:
        assert str(path) in message
        assert len(message) < 5000
        return
    images = TrainingImages(found, seed=0, short_sides=[32], max_size=64, flip_probability=0.5)
    for index in range(len(found.images)):
        image, target = images[0, index]
        widths = target["boxes"][:, 2:] - target["boxes"][:, :2]
        assert bool((widths > 0).all())
        assert image.shape[1:] == target["masks"].shape[1:]
    results = perfect(found)
    for kind in KINDS:
        scores = evaluate_detections(found.ground_truth, results, kind)
        assert set(scores.by_category) == set(found.category_ids)
        assert scores.overall["AP"] is None or np.isfinite(scores.overall["AP"])


IDS = {
    "0 … n": list(range(6)),
    "from 1": list(range(1, 7)),
    "repeated in each image": [1, 2, 1, 2, 1, 2],
    "all 0": [0] * 6,
    "texts": ["a", "7", "c33c3539-8bd1-48e0", "", "0", "é"],
    "negative": list(range(-6, 0)),
    "huge": [2**70 + n for n in range(6)],
    "fractions": [n / 7 for n in range(6)],
    "of every kind": [None, [1], {"a": 1}, True, 0, "0"],
    "missing": None,
}
NAMED = {
    "0 … n": [0, 1, 2],
    "negative": [-1, -2, -3],
    "huge": [2**70, 2**70 + 1, 2**31],
    "texts": ["img_2", "10", "9"],
    "texts and numbers": ["7", 7, 0],
    "whole floats": [0.0, 1.0, 2.0],
}


def six(annotation_ids, image_ids=(1, 2, 3), category_ids=(1, 2)):
    """Two objects in each of three images, one of each category."""
    boxes = [[10.0 + 40 * (n % 2), 10.0, 20.0, 20.0 + n] for n in range(6)]
    content = {
        "images": [
            {"id": i, "file_name": f"{n}.png", "height": 100, "width": 100} for n, i in enumerate(image_ids)
        ],
        "categories": [{"id": i, "name": f"kind {n}"} for n, i in enumerate(category_ids)],
        "annotations": [
            {
                "image_id": image_ids[n // 2],
                "category_id": category_ids[n % 2],
                "bbox": [x, y, w, h],
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            for n, (x, y, w, h) in enumerate(boxes)
        ],
    }
    for record, identity in zip(content["annotations"], annotation_ids or [], strict=False):
        record["id"] = identity
    return content


def read_six(content, folder):
    folder.mkdir()
    for record in content["images"]:
        shutil.copy(folder.parent / "grey.png", folder / record["file_name"])
    (folder / "a.json").write_text(json.dumps(content))
    return read_annotations(folder / "a.json", folder, keep_ground_truth=True)


@pytest.fixture
def grey(tmp_path):
    from PIL import Image

    Image.new("L", (100, 100)).save(tmp_path / "grey.png")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IDS)
def test_perfect_predictions_score_100_whatever_the_ids_of_annotations(name, kind, grey):
    found = read_six(six(IDS[name]), grey / "set")
    scores = evaluate_detections(found.ground_truth, perfect(found), kind)
    assert scores.overall["AP"] == pytest.approx(1)
    assert scores.overall["AR100"] == pytest.approx(1)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("what", ["image_ids", "category_ids"])
def test_perfect_predictions_score_100_whatever_the_ids_of_images_and_categories(name, what, grey):
    if what == "category_ids" and name == "texts and numbers":
        with pytest.raises(CocoDataError, match="some are numbers and some text: '7', 7"):
            read_six(six(range(6), category_ids=NAMED[name][:2]), grey / "set")
        return
    found = read_six(six(range(6), **{what: NAMED[name][: 3 if what == "image_ids" else 2]}), grey / "set")
    results = perfect(found)
    for kind in KINDS:
        scores = evaluate_detections(found.ground_truth, results, kind)
        assert scores.overall["AP"] == pytest.approx(1)
        assert list(scores.by_category) == found.category_ids
        assert all(value == pytest.approx(1) for value in scores.by_category.values())


def test_one_missed_object_is_missed_by_name(grey):
    """The control: the figures above are not 100 because nothing is looked at."""
    found = read_six(six([0] * 6, category_ids=["b", "a"]), grey / "set")
    scores = evaluate_detections(found.ground_truth, perfect(found)[:5], "bbox")
    assert found.category_ids == ["a", "b"]
    assert scores.by_category["b"] == pytest.approx(1)
    assert 0.6 < scores.by_category["a"] < 0.7
