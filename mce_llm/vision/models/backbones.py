"""Image encoders by name, from torchvision or timm, without their classifier.

Nothing is added to the libraries' own modules but the stem for small images, so that state dicts keep the libraries'
names and can be read by anything that reads theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from mce_llm.errors import MceLlmError
from mce_llm.running.messages import nearest_hint

STEMS = ("imagenet", "cifar")
_TIMM = "timm/"


class BackboneError(MceLlmError, ValueError):
    """An encoder that cannot be built; the message says which part of its description to change."""


@dataclass(frozen=True)
class BackboneSpec:
    """What it takes to build an encoder again.

    Attributes:
        name: A classification model of torchvision (`resnet50`), or of timm with `timm/` in front (`timm/resnet50d`).
        stem: `imagenet`, the library's own; `cifar`, a 3×3 convolution of stride 1 without max-pooling, for images
            of 32 to 64 pixels (ResNets only).
        kwargs: Further arguments of the library's constructor, such as timm's `{"channels": [16, 32, 64, 128]}`.
    """

    name: str
    stem: str = "imagenet"
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Check the stem; names and arguments are the libraries' to check.

        Raises:
            BackboneError: An unknown stem, or no name.
        """
        if self.stem not in STEMS:
            raise BackboneError(
                f"stem must be imagenet or cifar, got {self.stem!r}{nearest_hint(str(self.stem), STEMS)}"
            )
        if not self.name:
            raise BackboneError("the encoder has no name; resnet50 and timm/resnet50d are such names")


def build_backbone(spec: BackboneSpec, *, zero_init_residual: bool = True) -> nn.Module:
    """An encoder with random weights: images (B, 3, H, W) to features (B, feature_dim), pooled over positions.

    Args:
        spec: Which one.
        zero_init_residual: Start every residual branch at zero (ResNets), as the official pretraining does.

    Returns:
        The library's module, its classifier replaced by the identity.

    Raises:
        BackboneError: No library has a model of this name, it refuses the arguments, or the stem does not fit it.
    """
    build = _timm_model if spec.name.startswith(_TIMM) else _torchvision_model
    module = build(spec, zero_init_residual)
    if spec.stem == "cifar":
        _small_image_stem(module, spec.name)
    return module


def feature_dim(module: nn.Module, image_size: int = 64) -> int:
    """The width of the features that an encoder gives, found by encoding one black image.

    Args:
        module: The encoder.
        image_size: Side of that image.

    Returns:
        The number of features.

    Raises:
        BackboneError: The module does not give one row of features an image.
    """
    parameter = next(module.parameters())
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            features = module(parameter.new_zeros(1, 3, image_size, image_size))
    finally:
        module.train(was_training)
    if features.ndim != 2:
        raise BackboneError(
            f"the encoder gives features of shape {tuple(features.shape)}, not (B, d); choose one that pools"
        )
    return int(features.shape[1])


def channels_last_is_safe(module: nn.Module, device: torch.device) -> bool:
    """Whether training with channels last in memory is safe for an encoder on a device.

    On the CPU the backward pass of a strided 1×1 convolution with fewer than 8 input channels writes beyond its
    buffers in that layout (seen with torch 2.14.1; 8 and more channels, and strides of 1, agree with the other layout).

    Args:
        module: The encoder.
        device: Where it is trained.
    """
    if device.type != "cpu":
        return True
    return not any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < 8
        for layer in module.modules()
    )


def _torchvision_model(spec: BackboneSpec, zero_init_residual: bool) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if spec.name not in known:
        raise BackboneError(
            f"torchvision has no classification model {spec.name!r}{nearest_hint(spec.name, known)}; models of timm "
            f"are written timm/NAME"
        )
    arguments = dict(spec.kwargs)
    if spec.name.startswith(("resnet", "resnext", "wide_resnet")):
        arguments.setdefault("zero_init_residual", zero_init_residual)
    try:
        module = models.get_model(spec.name, weights=None, **arguments)
    except (TypeError, ValueError) as error:
        raise BackboneError(f"torchvision refuses {arguments} for {spec.name}: {error}") from error
    _take_off_classifier(module, spec.name)
    return module


def _take_off_classifier(module: nn.Module, name: str) -> None:
    """Put the identity in the place of the last linear layer; a norm or a flattening before it stays."""
    for attribute in ("fc", "classifier", "heads", "head"):
        head = getattr(module, attribute, None)
        if isinstance(head, nn.Linear):
            setattr(module, attribute, nn.Identity())
            return
        if isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear):
            head[-1] = nn.Identity()
            return
    raise BackboneError(f"{name} has no classifier that ends in a linear layer, so it cannot be taken off")


def _timm_model(spec: BackboneSpec, zero_init_residual: bool) -> nn.Module:
    import timm

    name = spec.name.removeprefix(_TIMM)
    if not timm.is_model(name):
        raise BackboneError(f"timm has no model {name!r}{nearest_hint(name, timm.list_models())}")
    arguments = dict(spec.kwargs)
    if "num_classes" in arguments or "pretrained" in arguments:
        raise BackboneError("num_classes and pretrained are no arguments of an encoder without weights")
    entry = timm.models.model_entrypoint(name)
    if entry.__module__ == "timm.models.resnet":
        arguments.setdefault("zero_init_last", zero_init_residual)
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except (TypeError, ValueError) as error:
        accepted = f" ({inspect.getmodule(entry).__name__})"  # type: ignore[union-attr]
        raise BackboneError(f"timm refuses {arguments} for {name}: {error}{accepted}") from error


def _small_image_stem(module: nn.Module, name: str) -> None:
    """3×3, stride 1, no max-pooling: what every small-image ResNet of the literature begins with."""
    first = getattr(module, "conv1", None)
    if isinstance(first, nn.Sequential):
        raise BackboneError(f"{name} has a deep stem; stem cifar is for the plain ResNets")
    if not isinstance(first, nn.Conv2d) or not hasattr(module, "maxpool"):
        raise BackboneError(f"stem cifar is for ResNets, which {name} is not; use stem imagenet")
    replacement = nn.Conv2d(3, first.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(replacement.weight, mode="fan_out", nonlinearity="relu")
    module.conv1 = replacement
    module.maxpool = nn.Identity()
