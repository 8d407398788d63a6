"""Reading a COCO file: what becomes a target, what is left out, and what is refused."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference

from mce_llm.vision.coco import CocoDataError, read_annotations
from mce_llm.vision.coco.dataset import read_image
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


def changed(hard_set, tmp_path, change):
    """The file with a change, read."""
    content = copy.deepcopy(hard_set.content)
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return read_annotations(path, hard_set.folder, keep_ground_truth=True)


def test_boxes_that_stick_out_are_clipped_and_counted(hard_set, tmp_path):
    def change(content):
        content["annotations"][1]["bbox"] = [44.5, -0.75, 20.5, 20.0]
        content["annotations"][2]["bbox"] = [8.0, 4.0, 64.0, 32.0]

    found = changed(hard_set, tmp_path, change)
    assert by_id(found)[7][1].box == (44.5, 0.0, 64.0, 19.25)
    assert by_id(found)[12][0].box == (8.0, 4.0, 64.0, 36.0)
    assert (
        "2 boxes stick out of their images, by up to 8.0 pixels, and are clipped for training"
        in found.summary()
    )
    assert "stick out" not in read_annotations(hard_set.path, hard_set.folder).summary()


@pytest.mark.parametrize("bbox", [[64, 4, 10, 10], [-20, 4, 20, 10], [4, 60, 9, 9], [-30, -30, 5, 5]])
def test_a_box_wholly_outside_is_left_out_and_counted(hard_set, tmp_path, bbox):
    found = changed(hard_set, tmp_path, put(bbox=bbox))
    assert found.left_out["boxes outside their images"] == 1
    assert [i.label for i in by_id(found)[7]] == [2]
    assert "1 boxes outside their images" in found.summary()


@pytest.mark.parametrize("counts", [[3072], [1000, 0, 2072], "PP3", "PP30"])
def test_run_lengths_of_no_pixel_are_an_empty_mask(hard_set, tmp_path, counts):
    found = changed(hard_set, tmp_path, put(segmentation={"size": [48, 64], "counts": counts}))
    assert found.left_out["empty segmentations"] == 2  # one is in the file as it is


def test_a_mask_wholly_outside_is_left_out_and_counted(hard_set, tmp_path):
    found = changed(hard_set, tmp_path, put(segmentation=[[70, 4, 80, 4, 80, 9]]))
    assert found.left_out["masks outside their images"] == 1


def test_what_is_read_though_it_is_unusual_is_said(hard_set, tmp_path):
    def change(content):
        rows = content["annotations"]
        rows[0].update(iscrowd=None, area=None)
        rows[1].update(iscrowd=False, area=0)
        rows[2].update(iscrowd=0.0, image_id=12.0, category_id=90.0, ignore=1)
        rows[3].pop("area")
        rows[3].pop("iscrowd")
        content["images"][0].update(width=64.0, id=7.0)
        content["images"].append({**content["images"][0], "id": 8})
        content["categories"][0]["id"] = 90.0

    found = changed(hard_set, tmp_path, change)
    plain = read_annotations(hard_set.path, hard_set.folder)
    assert [list(found.instances[n]) for n in range(6)] == list(plain.instances)
    assert found.category_ids == plain.category_ids
    assert all(type(identity) is int for identity in found.category_ids)
    assert found.left_out == plain.left_out
    notes = found.summary().splitlines()[1:]
    for part in (
        "1 annotations have iscrowd: null, which is read as 0",
        "2 annotations have area 0 or null; average precision by size takes the pixels of their masks",
        "1 annotations say ignore, which changes nothing here",
        "1 files are listed as more than one image",
    ):
        assert sum(part in note for note in notes) == 1
    assert len(notes) == 4


def many_boxes(change):
    def make(content):
        content["annotations"] = [
            {**content["annotations"][0], "id": n, "bbox": change([4.0 + n, 6.0, 40.0, 30.0])}
            for n in range(10)
        ]

    return make


def test_boxes_in_the_forms_of_other_tools_are_refused(hard_set, tmp_path):
    shares = many_boxes(lambda box: [box[0] / 64, box[1] / 48, box[2] / 64, box[3] / 48])
    with pytest.raises(
        CocoDataError, match=r"boxes that are shares of their image.*: all 10; the first is \[0.0625"
    ):
        changed(hard_set, tmp_path, shares)
    corners = many_boxes(lambda box: [box[0] + 16, box[1] + 10, box[0] + box[2], box[1] + box[3]])
    with pytest.raises(
        CocoDataError, match=r"boxes that look like x0, y0, x1, y1.*: all 10; the first is \[20.0"
    ):
        changed(hard_set, tmp_path, corners)
    right = changed(hard_set, tmp_path, many_boxes(lambda box: box))
    assert len(by_id(right)[7]) == 10


def test_many_problems_make_a_short_message(hard_set, tmp_path):
    def change(content):
        content["annotations"] = [{**content["annotations"][0], "bbox": None, "id": n} for n in range(5000)]

    with pytest.raises(CocoDataError) as caught:
        changed(hard_set, tmp_path, change)
    assert (
        "5,000 × box that is not four numbers: annotations[0] (id 0, image 000000000007.png): None, "
        in str(caught.value)
    )
    assert str(caught.value).endswith(", …")
    assert len(str(caught.value)) < 600


def rotated_set(tmp_path, orientation, *, entry):
    """One JPEG of 40 × 60 stored pixels, with an EXIF orientation and an entry of some size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": entry[0], "width": entry[1]}],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path / "a.json"


def test_sizes_tell_which_pixels_the_annotations_are_of(tmp_path):
    turned = rotated_set(tmp_path, 6, entry=(60, 40))
    with pytest.raises(
        CocoDataError, match=r"set image_orientation: upright: a\.jpg \(40 × 60, its entry says 60 × 40\)"
    ):
        read_annotations(turned, tmp_path)
    found = read_annotations(turned, tmp_path, upright=True)
    assert read_image(found.images[0]).shape == (3, 60, 40)
    stored = rotated_set(tmp_path, 6, entry=(40, 60))
    with pytest.raises(
        CocoDataError, match=r"set image_orientation: stored: a\.jpg \(60 × 40, its entry says 40 × 60\)"
    ):
        read_annotations(stored, tmp_path, upright=True)
    found = read_annotations(stored, tmp_path)
    assert read_image(found.images[0]).shape == (3, 40, 60)
    assert found.notes == []
    neither = rotated_set(tmp_path, 6, entry=(41, 60))
    with pytest.raises(
        CocoDataError, match=r"another size \(height × width\) than its entry says: a\.jpg \(40 × 60"
    ):
        read_annotations(neither, tmp_path)


@pytest.mark.parametrize(
    ("upright", "taken", "other"), [(False, "stored", "upright"), (True, "upright", "stored")]
)
def test_an_orientation_that_no_size_shows_is_said(tmp_path, upright, taken, other):
    path = rotated_set(tmp_path, 3, entry=(40, 60))
    found = read_annotations(path, tmp_path, upright=upright)
    assert (
        f"1 have an EXIF orientation that does not show in their size; their annotations are taken to be of the image as {taken}"
        in found.summary()
    )
    assert f"{other} is the other choice" in found.summary()


def test_a_damaged_image_file_is_found_at_the_start(hard_set, tmp_path):
    image = rotated_set(tmp_path, 1, entry=(40, 60)).with_suffix(".jpg")
    image.write_bytes(image.read_bytes()[:30])
    with pytest.raises(
        CocoDataError, match=r"image file that cannot be opened: .*a\.jpg is no image .*30 bytes"
    ):
        read_annotations(tmp_path / "a.json", tmp_path)


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
    rows[3]["bbox"] = [30.0, 8.0, -60.0, 20.0]
    rows[0]["segmentation"] = {"size": [64, 48], "counts": [64 * 48]}
    del rows[4]["bbox"]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CocoDataError) as caught:
        read_annotations(path, hard_set.folder)
    for part in (
        "gone.png",
        "image id given more than once: 12",
        "1 × annotation of an unknown category: annotations[1] (id 2, image_id 7): category_id 4",
        "1 × annotation of an unknown image: annotations[2] (id 3, image_id 999)",
        "box of negative width or height (COCO's are x, y, width, height): annotations[3] (id 4, image 000000000031.png)",
        "run lengths of a mask of [64, 48] in an image of [48, 64] (height, width)",
        "annotation without bbox: annotations[4] (id 5, image_id 31)",
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
        (put(bbox=[1, 2, float("nan"), 4]), "not four numbers"),
        (put(bbox=[1, 2, True, 4]), "not four numbers"),
        (put(bbox="1234"), "not four numbers"),
        (put(bbox={"x": 1, "y": 2, "w": 3, "h": 4}), "not four numbers"),
        (put(bbox=[1, 2, -3, 4]), "box of negative width or height"),
        (put(bbox=[1, 2, 3e6, 4]), "further than 1,000,000 pixels"),
        (put(bbox=[1, 2, 10**400, 4]), "not four numbers"),
        (put(segmentation=None), "without a segmentation"),
        (lambda c: c["annotations"][0].pop("segmentation"), "without a segmentation"),
        (
            put(segmentation=[1.0, 2.0, 9.0, 2.0, 9.0, 9.0]),
            r"one polygon, where a list of polygons must be: \[\[x0",
        ),
        (put(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), "reaches further than 1,000,000 pixels"),
        (
            put(segmentation=[{"size": [48, 64], "counts": [3072]}]),
            "a polygon must be a list of finite numbers, got {",
        ),
        (
            put(segmentation={"size": 48, "counts": [3072]}),
            r"run lengths of a mask of 48 in an image of \[48, 64\]",
        ),
        (
            put(segmentation={"size": [48, 64], "counts": "b'R1'"}),
            "no compressed text of COCO's, or end in the middle",
        ),
        (put(segmentation={"size": [48, 64], "counts": ""}), "no compressed text of COCO's"),
        (put(segmentation={"size": [48, 64], "counts": [3071, True]}), "whole numbers that add up to 3072"),
        (
            put(iscrowd="0"),
            r"iscrowd that is neither 0 nor 1: annotations\[0\] \(id 1, image 000000000007\.png\): '0'",
        ),
        (put(iscrowd=[0]), "iscrowd that is neither 0 nor 1"),
        (put(iscrowd=2), "iscrowd that is neither 0 nor 1"),
        (put(area="40"), "area that is no number from 0 on"),
        (put(area=-1), "area that is no number from 0 on"),
        (put(area=float("nan")), "area that is no number from 0 on"),
        (
            put(category_id=[7]),
            r"category_id is neither a whole number nor text: annotations\[0\] \(id 1, .*\[7\]",
        ),
        (put(category_id={}), "category_id is neither a whole number nor text"),
        (put(category_id=None), "category_id is neither a whole number nor text"),
        (put(category_id=True), "category_id is neither a whole number nor text"),
        (put(category_id=3.5), "category_id is neither a whole number nor text"),
        (put(category_id="3"), "unknown category: .*category_id '3'; there it is a number, 3"),
        (put(image_id=[7]), "image_id is neither a whole number nor text"),
        (put(image_id="7"), "unknown image: .*there it is a number, 7"),
        (lambda c: c["annotations"].append(None), r"annotation without .*annotations\[8\] None"),
        (lambda c: c["annotations"].append([1]), r"annotation without .*annotations\[8\] \[1\]"),
        (lambda c: c["images"].append("x.png"), r"image without .*images\[6\] 'x.png'"),
        (lambda c: c["images"][0].update(id=[7]), "image id that is neither"),
        (lambda c: c["images"][0].update(file_name=None), "file_name is no text"),
        (lambda c: c["images"][0].update(file_name=""), "file_name is no text"),
        (
            lambda c: c["images"][0].update(file_name="train\\000000000007.png"),
            r"\(but 000000000007\.png is there\)",
        ),
        (lambda c: c["images"][0].update(file_name="."), "image file that is not in"),
        (lambda c: c["images"][0].update(file_name="a" * 300), "image file that is not in"),
        (lambda c: c["images"][0].update(width=-1, height=-1), "no whole numbers above 0"),
        (lambda c: c["images"][0].update(width=True), "no whole numbers above 0"),
        (lambda c: c["images"][0].update(width=64.5), "no whole numbers above 0"),
        (
            lambda c: c["images"][0].update(width=48, height=64),
            "another size .*48 × 64, its entry says 64 × 48",
        ),
        (lambda c: c["categories"][0].update(id={}), "category id that is neither"),
        (lambda c: c["categories"][0].update(name=None), "category whose name is no text"),
        (lambda c: c["categories"][0].update(id="90"), "some are numbers and some text"),
        (lambda c: c["categories"].append("dog"), r"category without id, name: categories\[3\] 'dog'"),
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
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(CocoDataError, match="is not JSON"):
        read_annotations(tmp_path / "deep.json", hard_set.folder)
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
