"""Reading a COCO file: what becomes a target, what is left out, and what is refused."""

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as reference

from mce_llm.vision.coco import CocoDataError, read_annotations
from mce_llm.vision.coco.masks import segmentation_to_mask
from mce_llm.vision.coco.packing import PackedList


def by_id(annotations):
    return {image.id: annotations.instances[i] for i, image in enumerate(annotations.images)}


def test_what_is_learned_and_what_is_left_out(hard_set):
    found = read_annotations(hard_set.path, hard_set.folder)
    instances = by_id(found)
    # Categories 90, 3, 17 of the file are labels 3, 1, 2: in the order of their ids.
    assert found.category_ids == [3, 17, 90]
    assert found.category_names == ["car", "cat", "brush"]
    assert {n: [i.label for i in rows] for n, rows in instances.items()} == {
        7: [1, 2], 12: [3], 31: [1], 55: [], 80: [], 81: []
    }  # fmt: skip
    assert found.left_out == {"crowd regions": 2, "boxes without area": 1, "empty segmentations": 1}
    assert [found.images[i].id for i in found.with_instances()] == [7, 12, 31]
    assert instances[12][0].box == (8.0, 4.0, 24.0, 36.0)
    assert found.ground_truth is None
    assert (
        "6 images (3 without instances), 4 instances of 3 categories, 1 boxes without area" in found.summary()
    )


def test_the_ground_truth_keeps_what_training_leaves_out(hard_set):
    found = read_annotations(hard_set.path, hard_set.folder, keep_ground_truth=True)
    assert found.ground_truth == hard_set.content


def test_masks_of_all_three_forms_are_those_of_the_reference(hard_set, decode):
    sizes = {image["id"]: (image["height"], image["width"]) for image in hard_set.content["images"]}
    for item in hard_set.content["annotations"][:6]:
        height, width = sizes[item["image_id"]]
        runs = item["segmentation"]
        if isinstance(runs, list):
            runs = reference.merge(reference.frPyObjects(runs, height, width))
        elif isinstance(runs["counts"], list):
            runs = reference.frPyObjects(runs, height, width)
        expected = decode(runs)
        mask = segmentation_to_mask(item["segmentation"], height, width)
        assert mask.dtype == np.uint8
        assert mask.sum() > 100
        np.testing.assert_array_equal(mask, expected)


def test_a_box_that_sticks_out_by_rounding_is_clipped(hard_set, tmp_path):
    content = copy.deepcopy(hard_set.content)
    content["annotations"][1]["bbox"] = [44.5, -0.75, 20.5, 20.0]
    path = tmp_path / "clipped.json"
    path.write_text(json.dumps(content))
    assert by_id(read_annotations(path, hard_set.folder))[7][1].box == (44.5, 0.0, 64.0, 19.25)


def test_limit_takes_the_first_images_and_their_annotations(hard_set):
    found = read_annotations(hard_set.path, hard_set.folder, limit=2, keep_ground_truth=True)
    assert [image.id for image in found.images] == [7, 12]
    assert [a["id"] for a in found.ground_truth["annotations"]] == [1, 2, 3]


def test_all_problems_are_reported_at_once(hard_set, tmp_path):
    content = copy.deepcopy(hard_set.content)
    content["images"][0]["file_name"] = "gone.png"
    content["images"].append(dict(content["images"][1]))
    rows = content["annotations"]
    rows[1]["category_id"] = 4
    rows[2]["image_id"] = 999
    rows[3]["bbox"] = [30.0, 8.0, 60.0, 20.0]
    rows[0]["segmentation"] = {"size": [64, 48], "counts": [64 * 48]}
    del rows[4]["bbox"]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CocoDataError) as caught:
        read_annotations(path, hard_set.folder)
    for part in (
        "gone.png",
        "image id given more than once: 12",
        "unknown category: annotation 2 (category 4)",
        "unknown image: annotation 3 (image 999)",
        "box outside its image (x, y, width, height in pixels): annotation 4 (image 31, [30.0, 8.0, 60.0, 20.0])",
        "run lengths of a mask of [64, 48] in an image of [48, 64]",
        "annotation without bbox: annotation 5",
    ):
        assert part in str(caught.value)


def put(**changes):
    def change(content):
        content["annotations"][0].update(changes)

    return change


def remove(name):
    def change(content):
        del content[name]

    return change


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (put(bbox=[1, 2, 3]), "not four numbers"),
        (put(bbox=[1, 2, float("nan"), 4]), "box outside"),
        (put(bbox=[1, 2, -3, 4]), "box outside"),
        (put(segmentation=None), "without a segmentation"),
        (put(segmentation=[[1.0, 2.0, 3.0]]), "no last y"),
        (put(segmentation=[["a"] * 6]), "list of finite numbers"),
        (put(segmentation=7), "neither polygons nor run lengths"),
        (put(segmentation={"size": [48, 64], "counts": [1, 2]}), "add up to 3072"),
        (put(segmentation={"size": [48, 64], "counts": 3}), "must be a list or text"),
        (remove("annotations"), "no list of annotations"),
        (lambda c: c["images"][0].update(height="48"), "no whole numbers above 0"),
        (lambda c: c["categories"].append({"id": 3, "name": "again"}), "category id given more than once: 3"),
        (lambda c: c["categories"].clear(), "no categories"),
        (lambda c: c["images"].clear(), "no images"),
    ],
)
def test_what_is_refused(hard_set, tmp_path, change, pattern):
    content = copy.deepcopy(hard_set.content)
    change(content)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CocoDataError, match=pattern):
        read_annotations(path, hard_set.folder)


def test_files_that_are_not_there_or_are_something_else(hard_set, tmp_path):
    with pytest.raises(CocoDataError, match=r"no file .*x\.json; there is no folder of images .*nowhere"):
        read_annotations(tmp_path / "x.json", tmp_path / "nowhere")
    (tmp_path / "torn.json").write_text('{"images": [')
    with pytest.raises(CocoDataError, match="is not JSON"):
        read_annotations(tmp_path / "torn.json", hard_set.folder)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(CocoDataError, match="no list of images, annotations, categories"):
        read_annotations(tmp_path / "list.json", hard_set.folder)


def test_packed_list_is_a_list():
    items = [[], ["a", 1], None, {"x": (1, 2)}]
    packed = PackedList(items)
    assert list(packed) == items
    assert packed[-1] == items[-1]
    assert packed[1:3] == items[1:3]
    with pytest.raises(IndexError):
        packed[4]
    assert list(PackedList([])) == []
