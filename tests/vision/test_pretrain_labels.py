"""What the pretraining script makes of images with labels, without, and with some."""

import io
import re
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from helpers.pretraining import journal, words
from helpers.scripts import load_script
from mce_llm.vision.running import run_script

pretrain = load_script("vision/pretrain.py")


def folder_of(tmp_path, images):
    """Small random images at these paths."""
    for number, name in enumerate(images):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    return tmp_path / "images"


def png(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


NO_LIMIT = {"limit": 1000, "eval_limit": 1000, "epochs": 1, "warmup_epochs": 0}


@pytest.mark.parametrize("place", ["{}.png", "all/{}.png", "train/{}.png"])
def test_images_without_labels(place, tmp_path, capsys):
    """In no folder, in one folder, in a split folder: neither probe nor kNN, which would be empty or always right."""
    images = folder_of(tmp_path, [place.format(number) for number in range(12)])
    assert run_script(pretrain.main, words(tmp_path / "out", dataset=images, **NO_LIMIT)) == 0, (
        capsys.readouterr().err
    )
    said = capsys.readouterr().out
    lack = "has images of one class alone, 'all'" if "all" in place else "has no labels"
    assert f"{lack}: pretraining goes without the online probe and the kNN monitor" in said
    assert "no images are set apart for evaluation; spectra are measured on training images" in said
    assert "online probe 1" not in said
    last = journal(tmp_path / "out")[-1]
    assert last["monitor/effective_rank"] >= 1
    assert not {"train/probe_top1", "monitor/knn_top1"} & set(last)


@pytest.mark.parametrize("place", ["{}.png", "val/{}.png"])
def test_the_training_images_alone_have_labels(place, tmp_path, capsys):
    images = folder_of(tmp_path, [f"train/{name}/{number}.png" for name in "ab" for number in range(5)])
    other = folder_of(tmp_path / "other", [place.format(number) for number in range(4)])
    changed = {**NO_LIMIT, "dataset": images, "eval_dataset": other}
    assert run_script(pretrain.main, words(tmp_path / "out", **changed)) == 0, capsys.readouterr().err
    assert "the kNN monitor is left out: 4 of the 4 images" in capsys.readouterr().out
    assert "train/probe_top1" in journal(tmp_path / "out")[-1]


def test_some_images_without_labels(tmp_path, capsys):
    """As STL-10's train+unlabeled: probe and monitor use the others, and a batch without any of them is a batch."""
    rows = [{"bytes": png(number), "path": None} for number in range(40)]
    labels = [number % 2 if number < 6 else -1 for number in range(40)]
    for split, part in (("train", slice(0, 40)), ("test", slice(0, 6))):
        table = datasets.Dataset.from_dict({"image": rows[part], "label": labels[part]})
        table.to_parquet(tmp_path / f"{split}.parquet")
    changed = {**NO_LIMIT, "dataset": tmp_path, "knn_k": 1, "batch_size": 2}
    assert run_script(pretrain.main, words(tmp_path / "out", **changed)) == 0, capsys.readouterr().err
    assert (
        "34 images have no label; the online probe and the kNN monitor use the others"
        in capsys.readouterr().out
    )
    first, last = journal(tmp_path / "out")
    assert first["monitor/knn_top1"] == 1.0  # each is among the six that it is compared with
    assert last["train/probe_top1"] * 6 == pytest.approx(round(last["train/probe_top1"] * 6))


def test_the_monitor_matches_classes_by_name(tmp_path, capsys):
    """The validation images are the training images of the last class: by the places of classes none would be right."""
    images = folder_of(tmp_path, [f"train/{name}/{number}.png" for name in "abc" for number in range(4)])
    shutil.copytree(images / "train" / "c", images / "val" / "c")
    changed = {**NO_LIMIT, "dataset": images, "knn_k": 1}
    assert run_script(pretrain.main, words(tmp_path / "out", **changed)) == 0, capsys.readouterr().err
    assert journal(tmp_path / "out")[0]["monitor/knn_top1"] == 1.0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["a/{}.png", "b/{}.png"], r"no split folders .*set eval_dataset .*or go without the monitor: --monitor_every 0"),
        (["train/a/{}.png", "train/b/{}.png"], r"no split called val .*or go without the monitor: --monitor_every 0"),
        (["train/a/{}.png", "train/b/{}.png", "val/c/{}.png"], r"unknown to .*: 'c'; .*or go without the monitor: --monitor_every 0"),
    ],
)  # fmt: skip
def test_where_the_monitor_has_nothing_to_look_at_it_can_be_left_out(images, message, tmp_path, capsys):
    root = folder_of(tmp_path, [name.format(number) for name in images for number in range(6)])
    assert run_script(pretrain.main, words(tmp_path / "out", dataset=root, **NO_LIMIT)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert run_script(pretrain.main, words(tmp_path / "out", dataset=root, monitor_every=0, **NO_LIMIT)) == 0
