"""What a plain ResNet is, read off a module: block, depths, widths, groups. Every format but the libraries' own needs one.

A module that has anything else (a deep stem, attention, anti-aliasing, dilation) is refused with its name. What this
reading might miss is found by `mce_llm.vision.exporting.checking`, which compares outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mce_llm.vision.exporting.errors import UnsupportedFormatError

# What plain ResNets of torchvision and timm are made of, by the names of the classes.
_PARTS = (
    "AdaptiveAvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "FastAdaptiveAvgPool",
    "Flatten",
    "Identity",
    "MaxPool2d",
    "ReLU",
)
_BATCH_NORM = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_IN_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)([0-3])\.(\w+)")
_STEM = re.compile(r"(conv|bn)1\.(\w+)")


@dataclass(frozen=True)
class ResNetPlan:
    """The numbers that make a plain ResNet with four stages, its strides in the 3×3 convolutions.

    Attributes:
        block: `basic` (two 3×3 convolutions) or `bottleneck` (1×1, 3×3, 1×1).
        depths: Blocks in each stage.
        stem_width: Channels after the first convolution.
        widths: Channels that leave each stage.
        inner_widths: Channels of the 3×3 convolutions of each stage.
        groups: Groups of those convolutions.
    """

    block: str
    depths: tuple[int, ...]
    stem_width: int
    widths: tuple[int, ...]
    inner_widths: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Place:
    """Where a tensor of a plain ResNet belongs, whatever it is called.

    Attributes:
        stage: 0 for the stem, else 1 to 4.
        block: Its block in the stage, from 0.
        branch: The convolution it belongs to, from 1, or 0 for the shortcut.
        norm: Whether it is of the batch norm behind that convolution.
        name: weight, bias, running_mean, running_var or num_batches_tracked.
    """

    stage: int
    block: int
    branch: int
    norm: bool
    name: str


def place_of(key: str) -> Place | None:
    """The place of a tensor by its name in torchvision's and timm's ResNets; None for names that have no place there."""
    if (found := _STEM.fullmatch(key)) is not None:
        kind, name = found.groups()
        place = Place(0, 0, 1, kind == "bn", name)
    elif (found := _IN_BLOCK.fullmatch(key)) is not None:
        stage, block, kind, number, name = found.groups()
        shortcut = kind == "downsample."
        norm = number == "1" if shortcut else kind == "bn"
        if (number not in "01") if shortcut else (number == "0"):
            return None
        place = Place(int(stage), int(block), 0 if shortcut else int(number), norm, name)
    else:
        return None
    return place if place.name in (_BATCH_NORM if place.norm else {"weight"}) else None


def resnet_plan(module: nn.Module, name: str) -> ResNetPlan:
    """Read the plan of a plain ResNet.

    Args:
        module: An encoder of torchvision or timm, without its classifier.
        name: What to call it.

    Returns:
        The plan.

    Raises:
        UnsupportedFormatError: It is no plain ResNet; the message says why not.
    """
    weights = module.state_dict()
    if "layer4.0.conv1.weight" not in weights or "conv1.weight" not in weights:
        if "conv1.0.weight" in weights and "layer4.0.conv1.weight" in weights:
            raise UnsupportedFormatError(f"{name} has a deep stem, of several convolutions")
        raise UnsupportedFormatError(
            f"{name} is no ResNet, and nothing else is converted from one library's form to another's"
        )
    strange = [key for key in weights if place_of(key) is None]
    if strange:
        raise UnsupportedFormatError(f"{name} has what a plain ResNet has not: {strange[0]}")
    odd = sorted(
        {type(part).__name__ for part in module.modules() if not list(part.children())} - set(_PARTS)
    )
    if odd:
        raise UnsupportedFormatError(f"{name} has what a plain ResNet has not: {', '.join(odd)}")
    _check_convolutions(module, name)
    return _plan_of(weights, _groups(module, name))


def _check_convolutions(module: nn.Module, name: str) -> None:
    """Strides, paddings and dilations are not in the weights, so they are looked at in the modules."""
    first = module.get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    if (first.kernel_size, first.stride, first.padding) != ((7, 7), (2, 2), (3, 3)):
        raise UnsupportedFormatError(
            f"{name} begins with a {first.kernel_size[0]}×{first.kernel_size[1]} convolution of stride "
            f"{first.stride[0]} where a plain ResNet has 7×7 of stride 2"
        )
    if not isinstance(module.get_submodule("maxpool"), nn.MaxPool2d):
        raise UnsupportedFormatError(f"{name} has no max-pooling behind its first convolution")
    for key, part in module.named_modules():
        if isinstance(part, nn.BatchNorm2d) and part.eps != 1e-5:
            raise UnsupportedFormatError(
                f"{key} of {name} has ε = {part.eps:g} where a plain ResNet has 1e-05"
            )
        if not isinstance(part, nn.Conv2d) or key == "conv1":
            continue
        if part.dilation != (1, 1):
            raise UnsupportedFormatError(f"{key} of {name} is dilated")
        strided = part.stride != (1, 1)
        if strided and "downsample" not in key and part.kernel_size == (1, 1):
            raise UnsupportedFormatError(f"{key} of {name}, a 1×1 convolution, has stride {part.stride[0]}")
        expected = 2 if re.match(r"layer[2-4]\.0\.", key) and _takes_the_stride(module, key) else 1
        if part.stride != (expected, expected):
            raise UnsupportedFormatError(
                f"{key} of {name} has stride {part.stride[0]} where a plain ResNet has {expected}"
            )


def _takes_the_stride(module: nn.Module, key: str) -> bool:
    """Whether this convolution of a stage's first block is one of those with the stage's stride."""
    basic = "layer1.0.conv3.weight" not in module.state_dict()
    return "downsample" in key or key.endswith("conv1" if basic else "conv2")


def _groups(module: nn.Module, name: str) -> int:
    inner = "conv1" if "layer1.0.conv3.weight" not in module.state_dict() else "conv2"
    found = {
        part.groups
        for key, part in module.named_modules()
        if isinstance(part, nn.Conv2d) and key.startswith("layer") and key.endswith(inner)
    }
    if len(found) > 1:
        raise UnsupportedFormatError(f"{name} has different numbers of groups: {sorted(found)}")
    return found.pop()


def _plan_of(weights: Mapping[str, Tensor], groups: int) -> ResNetPlan:
    bottleneck = "layer1.0.conv3.weight" in weights
    stages = range(1, 5)
    depths = [max(p.block for k in weights if (p := place_of(k)) and p.stage == s) + 1 for s in stages]
    last = "conv3" if bottleneck else "conv2"
    inner = "conv2" if bottleneck else "conv1"
    return ResNetPlan(
        block="bottleneck" if bottleneck else "basic",
        depths=tuple(depths),
        stem_width=len(weights["conv1.weight"]),
        widths=tuple(len(weights[f"layer{s}.0.{last}.weight"]) for s in stages),
        inner_widths=tuple(len(weights[f"layer{s}.0.{inner}.weight"]) for s in stages),
        groups=groups,
    )
