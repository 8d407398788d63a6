import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from mce_llm.vision.data import ImageDataError, balanced_indices, open_images
from mce_llm.vision.data.shapes import CLASSES, Shapes
from mce_llm.vision.data.sources import share_of_each_class


@trials(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=1, max_size=80), st.integers(1, 100), st.integers(0, 20))
def test_a_limit_takes_as_many_of_each_class_as_can_be(labels, limit, more):
    chosen = balanced_indices(labels, limit)
    assert len(chosen) == min(limit, len(labels))
    assert chosen == sorted(set(chosen))
    assert all(0 <= i < len(labels) for i in chosen)
    taken = {label: sum(labels[i] == label for i in chosen) for label in set(labels)}
    # A class has fewer than another by more than one only where it has no more to give.
    most = max(taken.values())
    for label, count in taken.items():
        assert count >= most - 1 or count == labels.count(label)
    assert set(chosen) <= set(balanced_indices(labels, limit + more))
    assert chosen == balanced_indices(np.array(labels), limit)


def test_the_limits_of_both_splits(image_folder, settings):
    root = image_folder("train", {"a": 4, "b": 4}).parent
    image_folder("val", {"a": 3, "b": 3})
    limited = settings(root, limit=5, eval_limit=2)
    assert np.bincount(open_images(limited).labels).tolist() in ([2, 3], [3, 2])
    assert open_images(limited, "eval").labels == [0, 1]
    assert open_images(limited).names == open_images(limited).names
    assert len(open_images(settings(root, limit=99))) == 8


@trials(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=80),
    count=st.integers(0, 80),
    more=st.integers(0, 9),
)
def test_of_each_class_its_share(labels, count, more):
    chosen = share_of_each_class(labels, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(labels))
    assert set(chosen) <= set(share_of_each_class(labels, count + more))
    for label in set(labels):
        share = len(chosen) * labels.count(label) / len(labels)
        # Where several classes stand at the same fraction the first ones go first.
        assert abs(sum(labels[i] == label for i in chosen) - share) < len(set(labels))


def test_held_out_images_are_those_that_no_training_sees(image_folder, settings):
    root = image_folder("train", {"a": 8, "b": 4}).parent
    image_folder("val", {"a": 3, "b": 3})
    held = open_images(settings(root, eval_from_train=3), "eval")
    train = open_images(settings(root, eval_from_train=3))
    assert np.bincount(held.labels).tolist() == [2, 1]
    assert not set(held.names) & set(train.names)
    assert sorted([*held.names, *train.names]) == sorted(open_images(settings(root)).names)
    assert held.name.endswith("(train), held out")
    # The same whatever is trained on, and limits count what is left.
    few = settings(root, eval_from_train=3, limit=4, eval_limit=2)
    assert len(open_images(few)) == 4
    assert set(open_images(few).names) <= set(train.names)
    assert set(open_images(few, "eval").names) <= set(held.names)
    with pytest.raises(
        ImageDataError, match=r"eval_from_train 12 leaves nothing to train on: .* has 12 images"
    ):
        open_images(settings(root, eval_from_train=12))


def test_a_subset_keeps_names_labels_and_images(image_folder, settings):
    whole = open_images(settings(image_folder("train", {"a": 3, "b": 2}).parent))
    part = whole.subset([4, 0])
    assert part.labels == [1, 0]
    assert list(part.names) == ["b/01.png", "a/00.png"]
    assert part.classes == whole.classes
    assert torch.equal(part.image(0), whole.image(4))
    assert list(part.subset([1]).names) == ["a/00.png"]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "at least one image"),
        ([0, 5], r"must be in \[0, 5\), got 0 to 5"),
        ([-1], r"got -1 to -1"),
        ([2, 1, 2], "index 2 of .* more than once"),
    ],
)
def test_subsets_that_cannot_be(indices, message, image_folder, settings):
    whole = open_images(settings(image_folder("train", {"a": 3, "b": 2}).parent))
    with pytest.raises(ImageDataError, match=message):
        whole.subset(indices)


def test_statistics_are_the_data_set_s_unless_given(image_folder, settings):
    root = image_folder("train", {"a": 1}).parent
    assert open_images(settings(root)).mean == (0.485, 0.456, 0.406)
    assert open_images(settings("shapes", limit=1)).mean == (0.5, 0.5, 0.5)
    given_ = settings(root, mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0])
    assert open_images(given_).mean == (0.1, 0.2, 0.3)
    assert open_images(given_).std == (1.0, 1.0, 1.0)


def test_shapes_are_the_same_in_every_run():
    first, second = Shapes("train", 32), Shapes("train", 32)
    for i in (0, 17, 9999):
        assert torch.equal(first.image(i), second.image(i))
        assert first.image(i).shape == (3, 32, 32)
        assert first.image(i).dtype == torch.uint8
    assert not torch.equal(first.image(0), first.image(10))


def test_shapes_for_training_and_evaluation_are_apart():
    train, test = Shapes("train", 16), Shapes("test", 16)
    seen = {train.image(i).numpy().tobytes() for i in range(100)}
    assert len(seen) == 100
    assert not seen & {test.image(i).numpy().tobytes() for i in range(100)}


def test_the_class_of_a_shape_is_its_outline():
    source = Shapes("train", 24)
    assert source.classes == list(CLASSES)
    assert np.bincount(source.labels).tolist() == [1000] * 10
    # How much of the canvas a shape covers depends on its class; its colours do not.
    areas = {name: [] for name in CLASSES}
    colours = []
    for i in range(200):
        image = source.image(i).float()
        areas[CLASSES[source.labels[i]]].append(image.std().item())
        colours.append(image.mean((1, 2)))
    colours = torch.stack(colours)
    labels = torch.tensor(source.labels[:200])
    means = torch.stack([colours[labels == k].mean(0) for k in range(10)])
    # 20 images a class: class means lie as far apart as chance puts them (std of a mean about 255·0.25/√20 = 14).
    assert (means - colours.mean(0)).abs().max() < 4 * 14
    assert np.mean(areas["bar"]) < np.mean(areas["square"])
