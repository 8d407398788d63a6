"""Small images on disk, and a cache of their own for the lists of files."""

import os

import datasets
import numpy as np
import pytest
from PIL import Image

from mce_llm.vision.data import DataSettings


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Nothing is read from or left in the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr("mce_llm.vision.data.announcing._said", set())
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def picture(seed, size=(12, 10)):
    """A smooth random image of (width, height): smooth, so that JPEG changes little."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def draw():
    """A small random image: draw(seed, size)."""
    return picture


@pytest.fixture
def image_folder(tmp_path):
    """Write class folders and return their directory: image_folder("train", {"cat": 3, "dog": 2})."""

    def write(place, counts, suffix=".png"):
        root = tmp_path / "images" / place
        for number, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(100 * number + i).save(root / name / f"{i:02d}{suffix}")
        return root

    return write


@pytest.fixture
def age():
    """Date every folder below a directory back, as if nothing had been changed for an hour."""

    def back(root, seconds=3600):
        for folder, _, _ in os.walk(root):
            then = os.stat(folder).st_mtime - seconds
            os.utime(folder, (then, then))

    return back


@pytest.fixture
def settings():
    """Data settings that keep nothing in memory and say nothing: settings(path, eval_limit=3)."""

    def make(dataset, **changes):
        return DataSettings(str(dataset), **{"cache_images": "false", "image_size": 8, **changes})

    return make
