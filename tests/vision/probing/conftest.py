"""Small labelled sources, encoders and runs that probes are tried on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mce_llm.vision.data import DataSettings
from mce_llm.vision.data.torchvision_sets import ArrayImages
from mce_llm.vision.running import ResumeRules, RunSettings, open_run


def _images(count, seed=0, classes=3, noise=60, size=8):
    """Noise around a colour of each class: easy, but not for one pixel alone."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    colours = np.array([[190, 90, 90], [90, 190, 90], [90, 90, 190], [150, 150, 60]])[:classes]
    pixels = colours[labels][:, None, None, :] + random.normal(0, noise, (count, size, size, 3))
    names = ["red", "green", "blue", "olive"][:classes]
    return ArrayImages(pixels.clip(0, 255).astype(np.uint8), labels.tolist(), names, f"colours {seed}")


def _encoder(seed=0, width=12):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


@pytest.fixture
def small():
    """`images(count, …)`, `encoder(…)`, `data` and `run(folder)`."""

    def run(folder, **changed):
        settings = RunSettings(output_dir=str(folder), cpu=True, **changed)
        return open_run(settings, {}, rules=ResumeRules((settings,)))

    data = DataSettings(dataset="shapes", image_size=8, num_workers=0)
    return SimpleNamespace(images=_images, encoder=_encoder, data=data, run=run)


@pytest.fixture
def read():
    def read(path):
        return json.loads(path.read_text(encoding="utf-8"))

    return read
