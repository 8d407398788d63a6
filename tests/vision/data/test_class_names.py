"""Labels of two sources mean the same only by the names of the classes."""

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from mce_llm.vision.data import UNLABELED, ImageDataError, open_images, why_not_classified, with_classes_of
from mce_llm.vision.data.tables import TableImages
from mce_llm.vision.data.torchvision_sets import ArrayImages


def source(classes, labels, *, numbered=False, name="it"):
    found = ArrayImages(np.zeros((len(labels), 2, 2, 3), np.uint8), labels, classes, name)
    found.numbered = numbered
    return found


def names_of(found):
    return [None if label == UNLABELED else found.classes[label] for label in found.labels]


@given(
    known=st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=8, unique=True),
    data=st.data(),
)
@limits(max_examples=60, deadline=None)
def test_every_image_keeps_the_name_of_its_class(known, data):
    """Whatever classes are left out, and in whatever order they are listed."""
    classes = data.draw(st.permutations(known))[: data.draw(st.integers(1, len(known)))]
    labels = data.draw(st.lists(st.integers(UNLABELED, len(classes) - 1), min_size=1, max_size=12))
    before = source(classes, labels)
    after = with_classes_of(source(known, [0]), before)
    assert names_of(after) == names_of(before)
    assert after.classes == known
    assert len(after) == len(labels)
    assert list(after.names) == list(before.names)


def test_a_missing_class_shifts_no_label():
    """The control: places alone would call every image after the gap by the next class's name."""
    train, val = source(["a", "b", "c"], [0, 1, 2]), source(["a", "c"], [0, 1])
    assert val.labels == [0, 1]
    assert with_classes_of(train, val).labels == [0, 2]


def test_what_already_agrees_is_left_as_it_is():
    val = source(["a", "b"], [1, 0])
    assert with_classes_of(source(["a", "b"], [0, 1]), val) is val


def test_accents_may_be_encoded_either_way():
    composed, split = "caf\u00e9", "cafe\u0301"
    assert with_classes_of(source(["bar", composed], [0]), source([split], [0])).labels == [1]


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (["cat", "bird", "dog"], [0, 1, 2], r"1 of the classes of val are unknown to train: 'bird'; its 2 classes are cat, dog\. .*rename them"),
        (["Dog"], [0], r"all of the classes of val are unknown to train: 'Dog' \(did you mean 'dog'\?\)"),
        ([f"x{i}" for i in range(9)], list(range(9)), r"'x0', 'x1', 'x2', 'x3', 'x4', …;"),
    ],
)  # fmt: skip
def test_classes_that_training_does_not_know_are_named(classes, labels, message):
    with pytest.raises(ImageDataError, match=message):
        with_classes_of(source(["cat", "dog"], [0, 1], name="train"), source(classes, labels, name="val"))


def test_classes_that_training_knows_by_name_alone_are_said(capsys):
    """As `limit` leaves them, and tables with names of classes that none of their rows has."""
    with_classes_of(source(["cat", "dog"], [0], name="train"), source(["cat", "dog"], [0, 1], name="val"))
    assert "train has no image of 1 of the classes of val (dog), so no answer" in capsys.readouterr().out


def test_classes_without_an_image_do_not_matter():
    assert with_classes_of(source(["cat", "dog"], [0, 1]), source(["bird", "dog"], [1])).labels == [1]


@pytest.mark.parametrize(
    ("known", "other", "labels", "said"),
    [
        # numbers on both sides are names like others
        ((["0", "1", "2", "10"], True), (["1", "10"], True), [1, 3], False),
        # the number counts the names
        ((["cat", "dog", "eel"], False), (["0", "2"], True), [0, 2], True),
        ((["0", "2"], True), (["cat", "dog", "eel"], False), [0, None, 1], True),
        # folders that are numbers sort as text, and are matched as numbers all the same
        ((["0", "1", "10", "2"], False), (["1", "2"], True), [1, 3], False),
        ((["1", "2"], True), (["01", "02"], False), [0, 1], False),
    ],
)
def test_numbers_instead_of_names(known, other, labels, said, capsys):
    known, other = (source(classes, [0], numbered=numbered) for classes, numbered in (known, other))
    kept = [label for label, place in enumerate(labels) if place is not None]
    other.labels = kept
    assert with_classes_of(known, other).labels == [labels[label] for label in kept]
    assert ("number i is taken for the i-th class of it, counted from 0" in capsys.readouterr().out) == said
    if None in labels:
        other.labels = list(range(len(labels)))
        with pytest.raises(ImageDataError, match="unknown to it: 'dog'"):
            with_classes_of(known, other)


def test_a_number_beyond_the_names_is_unknown():
    """Such as 1 to 10 where 0 to 9 are meant."""
    with pytest.raises(ImageDataError, match="unknown to it: '2'"):
        with_classes_of(source(["cat", "dog"], [0]), source(["1", "2"], [0, 1], numbered=True))


@pytest.mark.parametrize(("column", "numbered"), [([3, 1], True), (["x", "3"], False)])
def test_tables_say_whether_their_classes_have_names(column, numbered, draw, tmp_path):
    draw(0).save(tmp_path / "a.png")
    image = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    table = TableImages(datasets.Dataset.from_dict({"image": [image] * 2, "label": column}), "t")
    assert table.numbered == numbered
    assert table.subset([0]).numbered == numbered
    assert table.classes == sorted(map(str, column))


def test_it_survives_being_kept_in_memory(draw, tmp_path, settings):
    draw(0).save(tmp_path / "a.png")
    image = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    datasets.Dataset.from_dict({"image": [image] * 2, "label": [0, 4]}).to_parquet(tmp_path / "train.parquet")
    assert open_images(settings(tmp_path / "train.parquet", cache_images="true")).numbered


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([0, 1], None),
        ([1, 1], "has images of one class alone, 'b'"),
        ([-1, -1], "has no labels"),
        ([0, -1, 1], None),
        ([0, -1, 0], "has images of one class alone, 'a'"),
    ],
)
def test_what_a_classifier_lacks(labels, why):
    assert why_not_classified(source(["a", "b"], labels)) == why
