import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mce_llm.vision.data import UNLABELED, CorruptImageError, ImageDataError, NoSuchSplitError, open_images
from mce_llm.vision.data import folder_index as indexing
from mce_llm.vision.data.folder_index import folder_index, index_file


def test_images_labels_and_names(image_folder, draw, settings):
    root = image_folder("train", {"dog": 2, "cat": 3}).parent
    source = open_images(settings(root))
    assert source.classes == ["cat", "dog"]
    assert source.labels == [0, 0, 0, 1, 1]
    assert list(source.names) == ["cat/00.png", "cat/01.png", "cat/02.png", "dog/00.png", "dog/01.png"]
    image, label = source[4]
    assert label == 1
    assert np.array_equal(image.permute(1, 2, 0), np.asarray(draw(1)))
    assert str(source) == f"{root} (train): 5 images, 2 classes"


def test_agrees_with_torchvision(image_folder, settings):
    from torchvision.datasets import ImageFolder

    root = image_folder("train", {"b": 2, "a": 1, "c d": 3})
    (root / "b" / "deeper").mkdir()
    (root / "b" / "00.png").rename(root / "b" / "deeper" / "x.PNG")
    (root / "a" / "notes.txt").write_text("no image")
    theirs, ours = ImageFolder(root), open_images(settings(root.parent))
    assert ours.classes == theirs.classes
    assert sorted(zip(ours.names, ours.labels, strict=True)) == sorted(
        (os.path.relpath(path, root), label) for path, label in theirs.samples
    )


def test_the_split_is_found_by_its_usual_name(image_folder, settings):
    root = image_folder("train", {"a": 2}).parent
    image_folder("test", {"a": 1})
    assert open_images(settings(root), "eval").name == f"{root} (test)"
    image_folder("val", {"a": 3})
    assert open_images(settings(root), "eval").name == f"{root} (val)"
    assert len(open_images(settings(root, eval_split="test"), "eval")) == 1
    image_folder("unlabelled", {"all": 4})
    assert len(open_images(settings(root, train_split="unlabelled"))) == 4


def test_class_folders_alone_are_for_training(image_folder, settings):
    root = image_folder(".", {"a": 2, "b": 2})
    assert len(open_images(settings(root))) == 4
    with pytest.raises(ImageDataError, match=r"no split folders \(val, .*set eval_dataset"):
        open_images(settings(root), "eval")
    other = image_folder("../other", {"a": 1, "b": 1})
    assert len(open_images(settings(root, eval_dataset=str(other)), "eval")) == 2


def test_the_list_is_kept_and_used(image_folder, age):
    root = image_folder("train", {"a": 2, "b": 1})
    age(root)
    first = folder_index(root)
    assert not first.kept
    again = folder_index(root)
    assert again.kept
    assert (again.files, again.classes, again.counts) == (first.files, first.classes, first.counts)
    assert not folder_index(root, rebuild=True).kept
    assert not [path for path in root.rglob("*") if path.suffix not in ("", ".png")]


def test_odd_names_survive(image_folder, age, draw):
    root = image_folder("train", {"a\nb": 1})
    os.rename(root / "a\nb" / "00.png", os.fsencode(root / "a\nb") + b"/\xff \n.png")
    age(root)
    folder_index(root)
    index = folder_index(root)
    assert index.kept
    assert (root / index.files[0]).is_file()


def add(root, draw):
    draw(9).save(root / "a" / "new.png")


def remove(root, draw):
    (root / "a" / "00.png").unlink()


def rename(root, draw):
    (root / "a" / "00.png").rename(root / "a" / "zz.png")


def new_class(root, draw):
    (root / "c").mkdir()
    draw(9).save(root / "c" / "new.png")


def deeper(root, draw):
    draw(9).save(root / "b" / "sub" / "new.png")


@pytest.mark.parametrize("change", [add, remove, rename, new_class, deeper])
def test_a_change_is_noticed(change, image_folder, age, draw):
    root = image_folder("train", {"a": 2, "b/sub": 1})
    age(root)
    before = folder_index(root).files
    assert folder_index(root).kept
    change(root, draw)
    after = folder_index(root)
    assert not after.kept
    assert after.files != before
    assert after.files == indexing.scan(root).files


def test_what_has_just_changed_is_not_kept(image_folder):
    root = image_folder("train", {"a": 2})
    folder_index(root)
    assert not index_file(root).exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: b"", lambda data: b"[]\n" + data])
def test_a_damaged_list_is_made_anew(damage, image_folder, age):
    root = image_folder("train", {"a": 2, "b": 2})
    age(root)
    files = folder_index(root).files
    path = index_file(root)
    path.write_bytes(damage(path.read_bytes()))
    index = folder_index(root)
    assert index.files == files
    assert all((root / name).exists() for name in index.files)


def test_a_cache_that_cannot_be_written_is_said(image_folder, age, unwritable, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(unwritable))
    root = image_folder("train", {"a": 2})
    age(root)
    assert len(folder_index(root).files) == 2
    assert "cannot be kept for the next start" in capsys.readouterr().out


def test_a_link_in_a_circle_ends(image_folder, settings):
    root = image_folder("train", {"a": 2})
    (root / "a" / "again").symlink_to(root / "a", target_is_directory=True)
    assert len(indexing.scan(root).files) == 2


def test_a_corrupt_image_is_named(image_folder, settings):
    root = image_folder("train", {"a": 2})
    (root / "a" / "01.png").write_bytes(b"garbage")
    source = open_images(settings(root.parent))
    assert source.image(0).shape == (3, 10, 12)
    with pytest.raises(CorruptImageError, match=rf"{root / 'a' / '01.png'} is no image"):
        source.image(1)


def test_empty_class_folders_are_named(image_folder, settings):
    root = image_folder("train", {"a": 1, "b": 0, "c": 0})
    with pytest.raises(ImageDataError, match=r"2 of the 3 class folders in .*train hold no image \(b, c\)"):
        open_images(settings(root.parent))


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_flat_directory_has_images_without_labels(tmp_path, settings, draw, cache):
    for name in ("b.png", "a.JPG", ".hidden.png", "c.PNG"):
        draw(0).save(tmp_path / name)
    source = open_images(settings(tmp_path, cache_images=cache))
    assert list(source.names) == ["a.JPG", "b.png", "c.PNG"]
    assert source.labels == [UNLABELED] * 3
    assert str(source) == f"{tmp_path}: 3 images, no labels"
    assert source.image(0).shape == (3, 10, 12)
    with pytest.raises(NoSuchSplitError, match="no split folders"):
        open_images(settings(tmp_path), "eval")
    assert len(open_images(settings("shapes", eval_dataset=str(tmp_path)), "eval")) == 3
    assert len(open_images(settings(tmp_path, limit=2))) == 2


def test_a_kept_list_of_a_flat_directory(tmp_path, settings, draw, age):
    folder = tmp_path / "flat"
    folder.mkdir()
    draw(0).save(folder / "a.png")
    (folder / "labels.csv").write_text("a.png,3")
    age(folder)
    first, again = folder_index(folder), folder_index(folder)
    assert again.kept
    assert (
        (again.loose, again.files, again.passed_over)
        == (first.loose, first.files, {".csv": 1})
        == (1, ["a.png"], {".csv": 1})
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"holds no image; images are looked for at .*<class>/<file>, or without labels at .*/<file> \(\.jpg"),
        (["a.heic", "notes"], r"holds no image; 2 files are passed over, as no images by their names \(\.heic 1, no ending 1\)"),
        (["cat/a.png", "dog/b.png", "c.png"], r"holds 1 images \(c\.png\) beside 2 folders \(cat, dog\).*one folder, and name the folder above"),
        (["cat/a.png", "dog/b.heic"], r"1 of the 2 class folders .*no image \(dog\); 1 files are passed over, .*\.heic 1\)"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_says_why(files, message, tmp_path, settings, draw):
    place(tmp_path, files, draw)
    with pytest.raises(ImageDataError, match=message):
        open_images(settings(tmp_path))


def place(root, files, draw):
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith(("png", "jpg")):
            draw(number).save(root / name)
        else:
            (root / name).write_text("no image")


def test_what_is_passed_over_is_said(image_folder, settings, capsys):
    root = image_folder("train", {"a": 2, "b": 1})
    for name in ("a/x.heic", "a/y.HEIC", "b/Thumbs.db", "b/deep/x.txt", "a/.DS_Store"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no image")
    assert len(open_images(settings(root.parent))) == 3
    assert (
        "4 files are passed over, as no images by their names (.heic 2, .db 1, .txt 1)"
        in capsys.readouterr().out
    )


def test_folders_of_systems_are_no_classes(image_folder, settings, draw):
    """What unpacking a zip file from a Mac, and a Synology, leave beside images."""
    root = image_folder("train", {"a": 1, "b": 1})
    place(
        root,
        ["__MACOSX/a/._x.jpg", "@eaDir/x.jpg", "a/@eaDir/x.jpg/thumb.jpg", ".ipynb_checkpoints/x.png"],
        draw,
    )
    source = open_images(settings(root.parent))
    assert source.classes == ["a", "b"]
    assert len(source) == 2


def test_folders_with_the_name_of_an_image_are_folders(image_folder, settings, draw):
    root = image_folder("train", {"a.png": 1, "b": 1})
    place(root, ["b/set.jpg/x.png"], draw)
    assert list(open_images(settings(root.parent)).names) == ["a.png/00.png", "b/00.png", "b/set.jpg/x.png"]


def test_links_are_followed_and_broken_ones_named(image_folder, settings, tmp_path, draw):
    root = image_folder("train", {"a": 2})
    (root / "b").symlink_to(root / "a", target_is_directory=True)
    (root / "a" / "linked.png").symlink_to(root / "a" / "00.png")
    source = open_images(settings(root.parent))
    assert source.labels == [0, 0, 0, 1, 1, 1]
    assert source.image(2).shape == (3, 10, 12)
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        ImageDataError, match=r"1 images in .*/a cannot be opened \(gone\.png\): links to files that are not"
    ):
        open_images(settings(root.parent))


def test_a_folder_that_cannot_be_listed_is_named(image_folder, settings, monkeypatch):
    root = image_folder("train", {"a": 1, "b": 1})
    real = os.scandir

    def scandir(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageDataError, match=r"/b cannot be listed: Permission denied"):
        open_images(settings(root.parent))


# directory → (classes of what is trained on, or None for no labels; likewise for evaluation, or the error's text)
SPLITS = {
    "usual": (["train/a/1.png", "train/b/1.png", "val/a/1.png"], ["a", "b"], ["a"]),
    "flat": (["train/1.png", "val/1.png"], None, None),
    "training alone, flat": (["train/1.png", "train/2.png"], None, "no split called val"),
    "labels in one": (["train/1.png", "test/a/1.png", "test/b/1.png"], None, ["a", "b"]),
    "in capitals": (["Train/a/1.png", "Train/b/1.png", "TEST/a/1.png"], ["a", "b"], ["a"]),
    "fastai's": (["training/a/1.png", "testing/a/1.png"], ["a"], ["a"]),
    "a class called train": (
        ["plane/1.png", "train/1.png", "bus/1.png"],
        ["bus", "plane", "train"],
        "no split folders",
    ),
    "a folder beside": (["train/a/1.png", "val/a/1.png", "extra/1.png"], ["a"], ["a"]),
    "one split flat": (["train/a/1.png", "val/1.png", "extra/1.png"], ["a"], None),
    "one class": (["all/1.png", "all/2.png"], ["all"], "no split folders"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_which_folders_are_splits(name, tmp_path, draw, settings):
    files, *wanted = SPLITS[name]
    place(tmp_path, files, draw)
    for purpose, classes in zip(("train", "eval"), wanted, strict=True):
        if isinstance(classes, str):
            with pytest.raises(NoSuchSplitError, match=classes):
                open_images(settings(tmp_path), purpose)
            continue
        source = open_images(settings(tmp_path), purpose)
        assert source.classes == (classes or [])
        assert (set(source.labels) == {UNLABELED}) == (classes is None)


def test_a_flat_split_of_any_name_may_be_asked_for(tmp_path, draw, settings):
    place(tmp_path, ["photos/1.png", "photos/2.png", "train/a/1.png"], draw)
    assert len(open_images(settings(tmp_path, train_split="photos"))) == 2


def test_classes_that_look_like_splits_are_said(tmp_path, draw, settings, capsys):
    place(
        tmp_path,
        [f"{split}/{name}/1.png" for split in ("training_set", "test_set") for name in ("cat", "dog")],
        draw,
    )
    assert open_images(settings(tmp_path)).classes == ["test_set", "training_set"]
    assert (
        "test_set, training_set. Each holds folders of the same names (cat, dog): if they are splits"
        in capsys.readouterr().out
    )
    asked = settings(tmp_path, train_split="training_set", eval_split="test_set")
    assert open_images(asked).classes == open_images(asked, "eval").classes == ["cat", "dog"]
    assert "same names" not in capsys.readouterr().out


def test_a_missing_split_lists_those_there(image_folder, settings):
    root = image_folder("train", {"a": 1}).parent
    image_folder("extra", {"a": 1})
    with pytest.raises(ImageDataError, match=r"no split 'trian' \(did you mean 'train'\?\); it has train"):
        open_images(settings(root, train_split="trian"))
    with pytest.raises(
        ImageDataError, match=r"no split called val or .*; it has train: set eval_split .*eval_dataset"
    ):
        open_images(settings(root), "eval")


def test_kept_in_memory_is_the_same(image_folder, settings, draw):
    root = image_folder("train", {"a": 3})
    draw(50, (30, 7)).save(root / "a" / "wide.png")
    disk, memory = (open_images(settings(root.parent, cache_images=choice)) for choice in ("false", "true"))
    assert list(memory.names) == list(disk.names)
    for i in range(4):
        assert torch.equal(memory.image(i), disk.image(i))
        assert memory.image(i).stride() == disk.image(i).stride()
    for path in Path(root).rglob("*.png"):
        path.unlink()
    assert memory.image(3).shape == (3, 7, 30)


def test_what_is_kept_is_said(image_folder, settings, monkeypatch, capsys):
    root = image_folder("train", {"a": 3}).parent
    open_images(settings(root, cache_images="auto"))
    assert "kept in memory, about 0 MB (cache_images: auto)" in capsys.readouterr().out
    monkeypatch.setattr("mce_llm.vision.data.memory.AUTO_LIMIT_BYTES", 1000)
    source = open_images(settings(root, cache_images="auto"))
    assert "decoded in each epoch" in capsys.readouterr().out
    assert type(source).__name__ == "FolderImages"
    monkeypatch.setenv("RANK", "1")
    open_images(settings(root, cache_images="true"))
    assert capsys.readouterr().out == ""
