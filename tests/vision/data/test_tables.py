import io

import datasets
import pytest
import torch

from mce_llm.vision.data import UNLABELED, CorruptImageError, ImageDataError, open_images
from mce_llm.vision.data.tables import TableImages


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def rows(draw, count, **columns):
    """`count` images in a typed column, with labels 0, 1, 0, … in another."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    data = {
        "image": [{"bytes": encoded(draw(i)), "path": None} for i in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    return datasets.Dataset.from_dict(data, features=features)


def pixels(draw, seed):
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(draw(seed))


def test_a_saved_data_set_with_splits(draw, tmp_path, settings):
    splits = datasets.DatasetDict({"train": rows(draw, 4), "validation": rows(draw, 2)})
    splits.save_to_disk(tmp_path / "saved")
    source = open_images(settings(tmp_path / "saved"))
    assert source.classes == ["cat", "dog"]
    assert source.labels == [0, 1, 0, 1]
    assert list(source.names) == ["0", "1", "2", "3"]
    assert torch.equal(source.image(3), pixels(draw, 3))
    assert source.name.endswith("saved (train)")
    assert len(open_images(settings(tmp_path / "saved"), "eval")) == 2
    with pytest.raises(ImageDataError, match=r"no split 'test'; it has train, validation"):
        open_images(settings(tmp_path / "saved", eval_split="test"), "eval")


def test_what_images_are_known_again_by(draw, tmp_path, settings, image_folder):
    """The same bytes through every kind of source, and none where there is no file; nothing is decoded."""
    table = TableImages(rows(draw, 2), "table")
    assert table.stored(1) == encoded(draw(1))
    (tmp_path / "1.png").write_bytes(b"no image, as it happens")
    paths = datasets.Dataset.from_dict({"image": [encoded(draw(0)), b""], "label": [0, 1]})
    assert TableImages(paths, "bytes").stored(1) == b""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    cells = [{"bytes": None, "path": str(tmp_path / name)} for name in ("0.png", "1.png", "2.png")]
    draw(0).save(tmp_path / "0.png")
    linked = datasets.Dataset.from_dict({"image": cells, "label": [0, 0, 0]}, features=features)
    source = TableImages(linked, "linked")
    assert source.stored(0) == (tmp_path / "0.png").read_bytes()
    assert source.stored(1) == b"no image, as it happens"
    assert source.stored(2) == b""
    assert source.subset([1, 0]).stored(0) == source.stored(1)
    root = image_folder("train", {"a": 2, "b": 1}).parent
    folder = open_images(settings(root))
    first = root / "train" / folder.names[2]
    assert folder.stored(2) == first.read_bytes()
    first.unlink()
    assert folder.stored(2) == b""


@pytest.mark.parametrize(
    "names", [("Train-0.parquet", "TEST-0.parquet"), ("birds_train.parquet", "birds_test.parquet")]
)
def test_parquet_files_say_their_split_anywhere_and_in_any_case(names, draw, tmp_path, settings):
    """Otherwise all of them would be the training images."""
    for name, count in zip(names, (3, 1), strict=True):
        rows(draw, count).to_parquet(tmp_path / name)
    assert len(open_images(settings(tmp_path))) == 3
    assert len(open_images(settings(tmp_path), "eval")) == 1


def test_a_pattern_of_images_is_no_pattern_of_tables(draw, tmp_path, settings):
    draw(0).save(tmp_path / "a.png")
    with pytest.raises(
        ImageDataError, match=r"names 1 files that are no .parquet files \(a\.png\); images are named by"
    ):
        open_images(settings(tmp_path / "*.png"))


def test_a_saved_split_is_for_training(draw, tmp_path, settings):
    rows(draw, 3).save_to_disk(tmp_path / "saved")
    assert len(open_images(settings(tmp_path / "saved"))) == 3
    with pytest.raises(ImageDataError, match="eval_dataset"):
        open_images(settings(tmp_path / "saved"), "eval")
    assert len(open_images(settings("shapes", eval_dataset=str(tmp_path / "saved")), "eval")) == 3


def test_parquet_files_by_split(draw, tmp_path, settings):
    for name, count in (("train-00000-of-00002", 3), ("train-00001-of-00002", 2), ("test-00000-of-00001", 1)):
        rows(draw, count).to_parquet(tmp_path / f"{name}.parquet")
    for place in (tmp_path, tmp_path / "*.parquet"):
        assert len(open_images(settings(place))) == 5
        assert len(open_images(settings(place), "eval")) == 1
    assert open_images(settings(tmp_path)).labels == [0, 1, 0, 0, 1]


def test_parquet_without_types_or_split(draw, tmp_path, settings):
    draw(7).save(tmp_path / "seven.png")
    plain = datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": encoded(draw(3)), "path": None}, {"bytes": None, "path": "seven.png"}],
            "kind": ["zebra", "ant"],
        }
    )
    plain.to_parquet(tmp_path / "animals.parquet")
    source = open_images(settings(tmp_path / "animals.parquet", label_column="kind"))
    assert source.classes == ["ant", "zebra"]
    assert source.labels == [1, 0]
    assert torch.equal(source.image(0), pixels(draw, 3))
    assert torch.equal(source.image(1), pixels(draw, 7))
    with pytest.raises(ImageDataError, match=r"set eval_split .*, eval_dataset .* or eval_from_train"):
        open_images(settings(tmp_path / "animals.parquet"), "eval")
    with pytest.raises(ImageDataError, match="no split 'foo'; it has train"):
        open_images(settings(tmp_path / "animals.parquet", train_split="foo"))
    apart = settings("shapes", eval_dataset=str(tmp_path / "animals.parquet"))
    assert len(open_images(apart, "eval")) == 2


def test_bytes_and_missing_labels(draw, tmp_path, settings):
    table = datasets.Dataset.from_dict({"img": [encoded(draw(i)) for i in range(3)], "target": [5, None, 2]})
    table.to_parquet(tmp_path / "x.parquet")
    source = open_images(settings(tmp_path / "x.parquet"))
    assert source.classes == ["2", "5"]
    assert source.labels == [1, UNLABELED, 0]
    assert str(source).endswith("3 images, 2 classes, 1 without a label")
    bare = open_images(settings(tmp_path / "x.parquet", label_column=None, image_column="img"))
    assert torch.equal(bare.image(2), pixels(draw, 2))


def test_images_without_labels(draw, tmp_path, settings):
    rows(draw, 3).remove_columns("label").save_to_disk(tmp_path / "saved")
    source = open_images(settings(tmp_path / "saved", limit=2))
    assert source.labels == [UNLABELED] * 2
    assert str(source).endswith("2 images, no labels")


def test_a_selection_is_respected(draw, tmp_path, settings):
    source = TableImages(rows(draw, 5).select([4, 1]), "x")
    assert source.labels == [0, 1]
    assert torch.equal(source.image(0), pixels(draw, 4))


def two_labels(draw):
    return (
        rows(draw, 2)
        .add_column("coarse", [0, 1])
        .cast_column("coarse", datasets.ClassLabel(names=["x", "y"]))
    )


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (two_labels, {}, "several columns that could be meant: set label_column to label or coarse"),
        (
            lambda draw: rows(draw, 2),
            {"label_column": "lable"},
            r"no column 'lable' \(did you mean 'label'\?\)",
        ),
        (lambda draw: rows(draw, 2), {"image_column": "label"}, "holds int, not encoded images"),
        (
            lambda draw: (
                rows(draw, 2).rename_column("image", "x").cast_column("x", datasets.Image(decode=False))
            ),
            {},
            None,
        ),
        (
            lambda draw: datasets.Dataset.from_dict({"a": [1], "label": [0]}),
            {},
            "set image_column to one of a, label",
        ),
        (
            lambda draw: rows(draw, 2).add_column("w", [0.5, 1.5]),
            {"label_column": "w"},
            "class numbers or names, got float",
        ),
    ],
)
def test_tables_that_cannot_be_used(make, changes, message, draw, tmp_path, settings):
    make(draw).save_to_disk(tmp_path / "saved")
    if message is None:  # found by its type, whatever its name
        assert len(open_images(settings(tmp_path / "saved", **changes))) == 2
        return
    with pytest.raises(ImageDataError, match=message):
        open_images(settings(tmp_path / "saved", **changes))


def test_a_table_without_rows(draw):
    with pytest.raises(ImageDataError, match="x has no rows"):
        TableImages(rows(draw, 1).select([]), "x")


def test_two_labels_can_be_told_apart(draw, tmp_path, settings):
    two_labels(draw).save_to_disk(tmp_path / "saved")
    assert open_images(settings(tmp_path / "saved", label_column="coarse")).classes == ["x", "y"]


def test_a_corrupt_row_is_named(draw, tmp_path, settings):
    table = datasets.Dataset.from_dict({"image": [encoded(draw(0)), b"garbage", None], "label": [0, 1, 1]})
    table.save_to_disk(tmp_path / "saved")
    source = open_images(settings(tmp_path / "saved"))
    with pytest.raises(CorruptImageError, match=r"row 1 of .*saved \(train\) is no image"):
        source.image(1)
    with pytest.raises(CorruptImageError, match=r"row 2 .* is missing"):
        source.image(2)


def test_broken_files(tmp_path, settings):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ImageDataError, match=r"x\.parquet cannot be read as parquet"):
        open_images(settings(tmp_path / "x.parquet"))
    with pytest.raises(ImageDataError, match=r"no parquet file at .*gone\.parquet"):
        open_images(settings(tmp_path / "gone.parquet"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ImageDataError, match="cannot be read as a saved data set"):
        open_images(settings(tmp_path / "saved"))


def test_a_hub_data_set(draw, settings, monkeypatch):
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda hub_id: ["train", "valid"])
    monkeypatch.setattr(
        datasets, "load_dataset", lambda hub_id, split: rows(draw, 2 if split == "valid" else 4)
    )
    assert len(open_images(settings("owner/pets"))) == 4
    source = open_images(settings("owner/pets"), "eval")
    assert (len(source), source.name) == (2, "owner/pets (valid)")

    def unreachable(hub_id):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    with pytest.raises(
        ImageDataError,
        match=r"owner/pets is no directory here, and cannot be loaded from the hub: .*no network",
    ):
        open_images(settings("owner/pets"))
