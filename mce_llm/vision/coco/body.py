"""The ResNet inside a detector: where its weights come from, what of it is frozen, and which norms it has.

Heads and pyramids are built around it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from mce_llm.running.messages import cause, nearest_hint
from mce_llm.running.settings import mapping_of
from mce_llm.vision.coco.errors import DetectorError
from mce_llm.vision.coco.settings import DetectorSettings
from mce_llm.vision.data.sources import IMAGENET
from mce_llm.vision.models import BackboneSpec, build_backbone, load_backbone

STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass
class Body:
    """A ResNet ready to be built around.

    Attributes:
        module: With children layer1 … layer4 and whatever comes before them.
        spec: What it takes to build it again.
        channels: Channels of the four stages' outputs.
        mean: Of its images, per channel, for values in [0, 1].
        std: Likewise.
        origin: Where its weights come from, in words.
    """

    module: nn.Module
    spec: BackboneSpec
    channels: list[int]
    mean: list[float]
    std: list[float]
    origin: str


def load_body(settings: DetectorSettings) -> Body:
    """Build the ResNet with the weights that the settings name.

    Args:
        settings: Of the detector.

    Returns:
        The body; norms and frozen stages as yet untouched.

    Raises:
        DetectorError: It is no ResNet, has the stem for small images, is another than `backbone` says, or
            torchvision has no such weights.
    """
    mean, std = map(list, IMAGENET)
    if settings.backbone_checkpoint is not None:
        module, spec, facts = load_backbone(settings.backbone_checkpoint)
        if settings.backbone not in (None, spec.name):
            raise DetectorError(
                f"backbone is {settings.backbone}, but {settings.backbone_checkpoint} holds {spec.name}; leave "
                "backbone out, or give another checkpoint"
            )
        mean, std = list(facts.get("mean") or mean), list(facts.get("std") or std)
        origin = str(settings.backbone_checkpoint)
        if facts.get("method"):
            origin += f" ({facts['method']}, {facts.get('epochs', '?')} epochs)"
    else:
        spec = BackboneSpec(
            name=settings.backbone or "resnet50",
            kwargs=mapping_of("backbone_kwargs", settings.backbone_kwargs, []),
        )
        module, origin = build_backbone(spec), "random weights"
        if settings.backbone_weights is not None:
            _load_supervised(module, spec.name, settings.backbone_weights)
            origin = f"torchvision's {settings.backbone_weights}"
    return Body(module, spec, stage_channels(module, spec), mean, std, origin)


def body_of(spec: BackboneSpec, mean: list[float], std: list[float], origin: str) -> Body:
    """The same ResNet with random weights, to be filled by a detector's checkpoint.

    Args:
        spec: Which ResNet.
        mean: Of its images.
        std: Likewise.
        origin: Where the weights will come from, in words.

    Returns:
        The body.
    """
    module = build_backbone(spec)
    return Body(module, spec, stage_channels(module, spec), mean, std, origin)


def stage_channels(module: nn.Module, spec: BackboneSpec) -> list[int]:
    """The channels that the four stages give, found by running a small black image through them.

    Args:
        module: The encoder.
        spec: Its description.

    Returns:
        Four numbers.

    Raises:
        DetectorError: It is no ResNet, or its strides are not 4, 8, 16, 32.
    """
    children = dict(module.named_children())
    if spec.stem == "cifar":
        raise DetectorError(
            f"{spec.name} with stem cifar has strides 1, 2, 4, 8 in the place of 4, 8, 16, 32: on an image of 800 "
            "pixels 16 times the memory, and no anchor fits; pretrain it with stem imagenet"
        )
    if any(stage not in children for stage in STAGES):
        raise DetectorError(
            f"{spec.name} has no stages layer1 … layer4 (found: {', '.join(list(children)[:6])}); Mask R-CNN is built "
            "around ResNets here, of torchvision or timm"
        )
    was_training = module.training
    module.eval()
    channels, strides = [], []
    with torch.no_grad():
        features = torch.zeros(1, 3, 64, 64)
        for name, child in children.items():
            features = child(features)
            if name in STAGES:
                channels.append(features.shape[1])
                strides.append(64 // features.shape[-1])
            if name == STAGES[-1]:
                break
    module.train(was_training)
    if strides != [4, 8, 16, 32]:
        raise DetectorError(
            f"the stages of {spec.name} have strides {strides}; detection needs [4, 8, 16, 32]"
        )
    return channels


def adapt_norms(body: Body, settings: DetectorSettings) -> Callable[[int], nn.Module] | None:
    """Freeze what is to be frozen.

    A frozen stage keeps its statistics as well as its weights. SyncBN is put in for the whole detector at once, later.

    Args:
        body: Its module is changed in place.
        settings: `norm` and `trainable_layers`.

    Returns:
        What makes a norm for a new layer; None where new layers have none (`frozen_bn`).

    Raises:
        DetectorError: Statistics of random weights would be frozen.
    """
    module = body.module
    frozen = settings.norm == "frozen_bn"
    if body.origin == "random weights" and (frozen or settings.trainable_layers < 5):
        raise DetectorError(
            "norm frozen_bn and trainable_layers below 5 keep what was learned before, but the backbone has random "
            "weights; give backbone_checkpoint, or norm sync_bn and trainable_layers 5"
        )
    trained = STAGES[max(4 - settings.trainable_layers, 0) :] if settings.trainable_layers else ()
    for name, child in list(module.named_children()):
        keep = name in trained or (name not in STAGES and settings.trainable_layers == 5)
        if not keep:
            child.requires_grad_(False)
        if frozen or not keep:
            setattr(module, name, with_frozen_norms(child))
    return None if frozen else nn.BatchNorm2d


def with_frozen_norms(module: nn.Module) -> nn.Module:
    """Put norms with fixed statistics and weights in the place of batch norms.

    Args:
        module: Changed in place, unless it is a batch norm itself.

    Returns:
        The module, or what has taken its place.

    Raises:
        DetectorError: A batch norm that does more than normalise.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if type(module) is not nn.BatchNorm2d:
            raise DetectorError(f"{type(module).__name__} cannot be frozen; use norm sync_bn or bn")
        frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
        state = {name: value for name, value in module.state_dict().items() if name != "num_batches_tracked"}
        frozen.load_state_dict(state)
        return frozen
    for name, child in list(module.named_children()):
        setattr(module, name, with_frozen_norms(child))
    return module


def _load_supervised(module: nn.Module, name: str, weights: str) -> None:
    from torchvision import models

    if name.startswith("timm/"):
        raise DetectorError(f"backbone_weights names weights of torchvision, and {name} is timm's")
    choices = {entry.name: entry for entry in models.get_model_weights(name)}
    if weights not in choices:
        raise DetectorError(
            f"torchvision has no weights {weights!r} of {name}{nearest_hint(weights, choices)}; it has "
            f"{', '.join(choices)}"
        )
    try:
        state: dict[str, Any] = dict(choices[weights].get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise DetectorError(f"{weights} of {name} could not be fetched: {cause(error)}") from error
    missing, unexpected = module.load_state_dict(state, strict=False)
    unexpected = [key for key in unexpected if not key.startswith("fc.")]  # the classifier is not needed
    if missing or unexpected:
        raise DetectorError(
            f"{weights} does not fit {name}: {len(missing)} missing ({', '.join(missing[:3])}), {len(unexpected)} "
            f"unexpected ({', '.join(unexpected[:3])})"
        )
