"""Encoders by name."""

import pytest
import torch
import torchvision

from mce_llm.vision.models import (
    BackboneError,
    BackboneSpec,
    build_backbone,
    channels_last_is_safe,
    feature_dim,
)

NARROW = {"channels": [8, 8, 8, 16], "stem_width": 8}


@pytest.mark.parametrize(
    ("spec", "size", "width"),
    [
        (BackboneSpec("resnet18"), 64, 512),
        (BackboneSpec("timm/resnet18", kwargs=NARROW), 64, 16),
        (BackboneSpec("timm/resnet18", stem="cifar", kwargs=NARROW), 32, 16),
        (BackboneSpec("convnext_tiny"), 64, 768),
        (BackboneSpec("timm/vit_tiny_patch16_224"), 224, 192),
    ],
)
def test_features_of_images(spec, size, width):
    module = build_backbone(spec).eval()
    assert feature_dim(module, size) == width
    with torch.no_grad():
        assert module(torch.rand(2, 3, size, size)).shape == (2, width)
    assert not module.training


def test_the_names_are_torchvisions():
    ours = build_backbone(BackboneSpec("resnet18")).state_dict()
    theirs = torchvision.models.resnet18().state_dict()
    assert theirs.keys() - ours.keys() == {"fc.weight", "fc.bias"}
    assert ours.keys() < theirs.keys()


def test_the_small_stem_keeps_the_resolution():
    module = build_backbone(BackboneSpec("timm/resnet18", stem="cifar", kwargs=NARROW))
    assert module.conv1.kernel_size == (3, 3)
    assert module.conv1.stride == (1, 1)
    assert module.layer1(module.maxpool(module.conv1(torch.rand(1, 3, 32, 32)))).shape[-1] == 32


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_residual_branches_start_at_zero(name):
    zero = build_backbone(BackboneSpec(name))
    assert not zero.layer1[0].bn2.weight.any()
    assert build_backbone(BackboneSpec(name), zero_init_residual=False).layer1[0].bn2.weight.all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BackboneSpec("resnet18", stem="cifra"),
            r"stem must be imagenet or cifar, got 'cifra'.*'cifar'",
        ),
        (lambda: BackboneSpec(""), r"has no name"),
        (
            lambda: build_backbone(BackboneSpec("resnet5")),
            r"no classification model 'resnet5' \(did you mean 'resnet50'",
        ),
        (lambda: build_backbone(BackboneSpec("timm/resnet1")), r"timm has no model 'resnet1' \(did you mean"),
        (
            lambda: build_backbone(BackboneSpec("resnet18", kwargs={"depth": 3})),
            r"torchvision refuses .*depth",
        ),
        (lambda: build_backbone(BackboneSpec("timm/resnet18", kwargs={"wide": 3})), r"timm refuses .*wide"),
        (lambda: build_backbone(BackboneSpec("timm/resnet18", kwargs={"num_classes": 3})), r"num_classes"),
        (
            lambda: build_backbone(BackboneSpec("mobilenet_v2", stem="cifar")),
            r"for ResNets, which mobilenet_v2 is not",
        ),
        (lambda: build_backbone(BackboneSpec("timm/resnet18d", stem="cifar")), r"has a deep stem"),
    ],
)
def test_what_cannot_be_built(make, message):
    with pytest.raises(BackboneError, match=message):
        make()


def test_an_encoder_must_pool():
    with pytest.raises(BackboneError, match=r"shape \(1, 4, 30, 30\)"):
        feature_dim(torch.nn.Conv2d(3, 4, 3), 32)


def test_where_channels_last_is_left_alone():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    narrow = build_backbone(BackboneSpec("timm/resnet18", kwargs={"channels": [4, 4, 4, 8], "stem_width": 4}))
    assert not channels_last_is_safe(narrow, cpu)
    assert channels_last_is_safe(narrow, gpu)
    assert channels_last_is_safe(build_backbone(BackboneSpec("timm/resnet18", kwargs=NARROW)), cpu)
