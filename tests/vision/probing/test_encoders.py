import json

import pytest
import torch

from mce_llm.running.settings import ConfigurationError
from mce_llm.vision.data import DataSettings
from mce_llm.vision.models import BackboneFileError, BackboneSpec, build_backbone, save_backbone
from mce_llm.vision.probing import EncoderSettings, open_encoder, prepared_as

KWARGS = {"channels": [4, 4, 4, 8], "stem_width": 4}
TINY = BackboneSpec("timm/resnet18", "cifar", KWARGS)
RANDOM = {"backbone": "timm/resnet18", "stem": "cifar", "backbone_kwargs": json.dumps(KWARGS)}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(5)
    facts = {
        "image_size": 32,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
        "method": "matrix_ssl",
        "epochs": 7,
    }
    save_backbone(build_backbone(TINY), TINY, tmp_path, facts)
    torch.manual_seed(6)
    save_backbone(build_backbone(TINY), TINY, tmp_path / "teacher", facts)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({}, "exactly one of encoder .*, backbone .* and pixels, got none"),
        ({"encoder": "x", "backbone": "resnet18"}, "got encoder and backbone"),
        ({"encoder": "x", "pixels": True}, "got encoder and pixels"),
        ({"encoder": "x", "stem": "cifar"}, "stem belongs to backbone, which is not given"),
        ({"pixels": True, "backbone_kwargs": "{a: 1}"}, "backbone_kwargs belongs to backbone"),
        ({"backbone": "resnet18", "use_teacher": True}, "use_teacher needs encoder"),
        ({"backbone": "resnet18", "stem": "small"}, "stem must be imagenet or cifar, got 'small'"),
        ({"backbone": "resnet18", "backbone_kwargs": "3"}, "backbone_kwargs must be a mapping"),
        ({"stem": "x", "use_teacher": True}, "(?s)got none.*stem must.*stem belongs.*use_teacher needs"),
    ],
)
def test_not_one_encoder_is_refused(given, pattern):
    with pytest.raises(ConfigurationError, match=pattern):
        EncoderSettings(**given)


def test_random_weights_are_a_function_of_the_seed_and_said_loudly(capsys):
    state = torch.get_rng_state()
    first, again, other = (open_encoder(EncoderSettings(**RANDOM), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        "UNTRAINED ENCODER: timm/resnet18 has random weights (seed 3). This is a baseline"
        in capsys.readouterr().out
    )
    assert torch.equal(first.module.conv1.weight, again.module.conv1.weight)
    assert not torch.equal(first.module.conv1.weight, other.module.conv1.weight)
    assert first.facts["kind"] == "random"
    assert first.facts["epochs"] == 0
    assert not first.module.training


def test_a_pretrained_encoder_and_its_teacher(folder, capsys):
    student = open_encoder(EncoderSettings(encoder=str(folder)), 0)
    assert "encoder: timm/resnet18" in capsys.readouterr().out
    teacher = open_encoder(EncoderSettings(encoder=str(folder), use_teacher=True), 0)
    assert student.facts["kind"] == "pretrained"
    assert student.facts["method"] == "matrix_ssl"
    assert not student.module.training
    assert not torch.equal(student.module.conv1.weight, teacher.module.conv1.weight)
    with pytest.raises(BackboneFileError, match=r"teacher/teacher.*no such folder"):
        open_encoder(EncoderSettings(encoder=str(folder / "teacher"), use_teacher=True), 0)


def test_pixels():
    encoder = open_encoder(EncoderSettings(pixels=True), 0)
    assert encoder.spec is None
    assert encoder.module(torch.zeros(2, 3, 4, 4)).shape == (2, 48)


def test_images_are_prepared_as_for_pretraining(folder, capsys):
    encoder = open_encoder(EncoderSettings(encoder=str(folder)), 0)
    adopted = prepared_as(encoder, DataSettings(dataset="shapes"), {"dataset": "shapes"})
    assert (adopted.image_size, adopted.mean, adopted.std) == (32, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    assert "from the encoder's file: image_size 32, mean [0.4, 0.5, 0.6]" in capsys.readouterr().out
    own = {"dataset": "shapes", "image_size": 48}
    kept = prepared_as(encoder, DataSettings(**own), own)
    assert kept.image_size == 48
    assert kept.mean == [0.4, 0.5, 0.6]
    assert "image_size 48 differs from the 32 that the encoder was pretrained with" in capsys.readouterr().out


def test_an_encoder_without_such_facts_changes_nothing():
    encoder = open_encoder(EncoderSettings(pixels=True), 0)
    data = DataSettings(dataset="shapes", image_size=16)
    assert prepared_as(encoder, data, {}) == data
