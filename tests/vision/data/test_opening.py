import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets as torchvision_datasets

from mce_llm.running.settings import ConfigurationError, parse_settings
from mce_llm.vision.data import AugmentationSettings, DataSettings, ImageDataError, open_images


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 and CIFAR-100 in torchvision's layout, with 20 images a file."""
    random = np.random.default_rng(0)

    def write(maker, meta_key, label_key, classes):
        lists = {"train_list": maker.train_list, "test_list": maker.test_list}
        folder = tmp_path / maker.base_folder
        folder.mkdir(parents=True)
        for name, files in lists.items():
            monkeypatch.setattr(maker, name, [[file, None] for file, _ in files])
            for file, _ in files:
                entry = {"data": random.integers(0, 256, (20, 3072), dtype=np.uint8)}
                entry[label_key] = random.integers(0, classes, 20).tolist()
                (folder / file).write_bytes(pickle.dumps(entry))
        monkeypatch.setattr(maker, "meta", {**maker.meta, "md5": None})
        (folder / maker.meta["filename"]).write_bytes(
            pickle.dumps({meta_key: [f"c{i}" for i in range(classes)]})
        )

    write(torchvision_datasets.CIFAR10, "label_names", "labels", 10)
    write(torchvision_datasets.CIFAR100, "fine_label_names", "fine_labels", 100)
    return tmp_path


def test_cifar(cifar, settings):
    source = open_images(settings("cifar10", data_dir=str(cifar), cache_images="true"))
    theirs = torchvision_datasets.CIFAR10(cifar)
    assert len(source) == 100
    assert source.labels == theirs.targets
    assert torch.equal(source.image(7), torch.from_numpy(theirs.data[7]).permute(2, 0, 1))
    assert source.mean[0] == 0.4914
    evaluation = open_images(settings("cifar10", data_dir=str(cifar), eval_limit=8), "eval")
    assert (len(evaluation), evaluation.name) == (8, "cifar10 (test)")
    hundred = open_images(settings("cifar100", data_dir=str(cifar)))
    assert (len(hundred), len(hundred.classes)) == (20, 100)


def test_stl10_and_its_unlabelled_images(tmp_path, settings, monkeypatch):
    maker, random = torchvision_datasets.STL10, np.random.default_rng(0)
    folder = tmp_path / maker.base_folder
    folder.mkdir()
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(maker, name, [[file, None] for file, _ in getattr(maker, name)])
    for file, count in (("train_X.bin", 10), ("unlabeled_X.bin", 6), ("test_X.bin", 4)):
        random.integers(0, 256, count * 3 * 96 * 96, dtype=np.uint8).tofile(folder / file)
    for file, count in (("train_y.bin", 10), ("test_y.bin", 4)):
        random.integers(1, 11, count, dtype=np.uint8).tofile(folder / file)
    (folder / "class_names.txt").write_text("\n".join(f"c{i}" for i in range(10)))
    place = {"data_dir": str(tmp_path)}
    source = open_images(settings("stl10", **place))
    assert source.image(0).shape == (3, 96, 96)
    image, _ = maker(tmp_path)[3]
    assert np.array_equal(source.image(3).permute(1, 2, 0), np.asarray(image))
    assert len(open_images(settings("stl10", **place), "eval")) == 4
    unlabelled = open_images(settings("stl10", train_split="unlabeled", **place))
    assert str(unlabelled) == "stl10 (unlabeled): 6 images, no labels"
    both = open_images(settings("stl10", train_split="train+unlabeled", **place))
    assert str(both) == "stl10 (train+unlabeled): 16 images, 10 classes, 6 without a label"


def test_imagenette(tmp_path, draw, settings):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n03425413"):
            folder = tmp_path / "imagenette2" / split / wnid
            folder.mkdir(parents=True)
            draw(1).save(folder / "x_0.JPEG")
    source = open_images(settings("imagenette", data_dir=str(tmp_path)))
    assert source.classes == ["tench", "gas pump"]
    assert list(source.names) == ["n01440764/x_0.JPEG", "n03425413/x_0.JPEG"]
    assert open_images(settings("imagenette", data_dir=str(tmp_path)), "eval").name == "imagenette (val)"


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("stl10", "stl10_binary"),
        ("imagenette", "imagenette2"),
    ],
)
def test_what_is_not_there_is_not_downloaded_unasked(dataset, folder, tmp_path, settings):
    place = settings(dataset, data_dir=str(tmp_path / "data"))
    with pytest.raises(
        ImageDataError, match=rf"{tmp_path}/data/{folder}, which is not there; set download: true"
    ):
        open_images(place)
    assert not (tmp_path / "data").exists()
    (tmp_path / "data" / folder).mkdir(parents=True)
    with pytest.raises(ImageDataError, match="which is incomplete or damaged"):
        open_images(place)


def test_a_name_that_is_also_a_directory_here(cifar, image_folder, settings, monkeypatch, capsys):
    """The data set of that name is taken, with a word on how to take the directory."""
    root = image_folder("cifar10", {"cat": 1, "dog": 2})
    monkeypatch.chdir(root.parent)
    assert len(open_images(settings("cifar10", data_dir=str(cifar)))) == 100
    assert f"not the directory {root}; write ./cifar10 for that" in capsys.readouterr().out
    assert len(open_images(settings("./cifar10", data_dir=str(cifar)))) == 3
    assert capsys.readouterr().out == ""
    with pytest.raises(ImageDataError, match="which is not there"):
        open_images(settings("cifar10", data_dir=str(root)))
    assert capsys.readouterr().out == ""  # it was said, once


def test_a_download_that_fails(tmp_path, settings, monkeypatch):
    from urllib.error import URLError

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(ImageDataError, match=r"cifar10 cannot be downloaded to .*no route to host"):
        open_images(settings("cifar10", data_dir=str(tmp_path), download=True))


@pytest.mark.parametrize(
    ("dataset", "changes", "message"),
    [
        (
            "cifar1o",
            {},
            r"no data set 'cifar1o' \(did you mean 'cifar10'\?\); known are cifar10, .* no directory",
        ),
        ("{}/nowhere/at/all", {}, r"there is no directory .*/nowhere/at/all; the part that exists is {}$"),
        ("{}/imagse", {}, r"there is no directory .*/imagse \(did you mean 'images'\?\)"),
        ("{}/a.txt", {}, r"a\.txt is a file; give a directory, or \.parquet files"),
        (
            "shapes",
            {"train_split": "tests"},
            r"no split 'tests' \(did you mean 'test'\?\); it has train, test",
        ),
        ("cifar10", {"train_split": "unlabeled"}, r"no split 'unlabeled'; it has train, test"),
    ],
)
def test_names_that_cannot_be_found(dataset, changes, message, tmp_path, settings):
    (tmp_path / "images").mkdir()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ImageDataError, match=message.replace("{}", str(tmp_path))):
        open_images(settings(dataset.format(tmp_path), **changes))


def test_only_two_purposes(settings):
    with pytest.raises(ImageDataError, match="split must be train or eval, got 'test'"):
        open_images(settings("shapes"), "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": " "}, "dataset is empty"),
        ({"image_size": 4}, "image_size must be at least 8 pixels, got 4"),
        ({"limit": 0}, "limit must be at least 1, got 0; leave it out"),
        ({"eval_limit": -2}, "eval_limit must be at least 1, got -2"),
        ({"eval_from_train": 0}, "eval_from_train must be at least 1, got 0; leave it out"),
        (
            {"eval_from_train": 5, "eval_split": "val"},
            "eval_split and eval_from_train both say what to evaluate on",
        ),
        ({"eval_from_train": 5, "eval_dataset": "shapes"}, "eval_dataset and eval_from_train both say"),
        ({"num_workers": -1}, r"num_workers must be 0 \(load in the main process\) or more, got -1"),
        ({"cache_images": "maybe"}, "cache_images must be auto, true or false, got 'maybe'"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean and std go together"),
        (
            {"mean": [0.5], "std": [1.0, 1.0, 0.0]},
            r"(?s)mean must be three numbers in \[0, 1\].*std must be .* in \(0, 1\]",
        ),
        ({"image_size": 1, "limit": 0}, "(?s)image_size.*limit"),
    ],
)
def test_data_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        DataSettings(**{"dataset": "shapes", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_scale_min": 0.0}, "0 < crop_scale_min <= crop_scale_max <= 1 must hold, got 0.0 and 1.0"),
        ({"crop_scale_min": 0.5, "crop_scale_max": 0.4}, "got 0.5 and 0.4"),
        ({"jitter_probability": 1.2}, r"jitter_probability must be in \[0, 1\], got 1.2"),
        ({"jitter_contrast": -0.1}, r"jitter_contrast must be 0 \(off\) or more, got -0.1"),
        ({"jitter_hue": 0.6}, r"jitter_hue must be in \[0, 0.5\], got 0.6"),
        ({"blur_sigma_min": 0.0}, "0 < blur_sigma_min"),
        ({"solarize_threshold": 256}, r"solarize_threshold must be in \[0, 255\], got 256"),
        ({"blur": "yes"}, "blur must be auto, true or false, got 'yes'"),
        (
            {"flip_probability": float("nan"), "grayscale_probability": 2.0},
            "(?s)grayscale_probability.*flip_probability",
        ),
    ],
)
def test_augmentation_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        AugmentationSettings(**changes)


def test_settings_from_a_file_and_the_command_line(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "dataset: shapes\nblur: false\ncache_images: true\nmean: [0.5, 0.5, 0.5]\nstd: [1, 1, 1]\n"
    )
    (data, augmentation), given = parse_settings(
        (DataSettings, AugmentationSettings), ["--config", str(tmp_path / "c.yaml"), "--limit", "7"]
    )
    assert (data.dataset, data.cache_images, data.mean, data.limit) == ("shapes", "true", [0.5] * 3, 7)
    assert augmentation.blur == "false"
    assert not augmentation.blurs(224)
    assert "dataset" in given
