"""detectron2's layout: a pickle of NumPy arrays under its ResNet's names, and the configuration that goes with them.

detectron2 is not needed to write or to check one: the check is its ResNet's forward pass, written out over its names.
"""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from mce_llm.vision.exporting.encoder import Encoder, Outputs
from mce_llm.vision.exporting.errors import ExportError, UnsupportedFormatError
from mce_llm.vision.exporting.plan import Place, ResNetPlan, place_of, resnet_plan

WEIGHTS = "backbone.pkl"
CONFIG = "backbone.yaml"
# detectron2.modeling.backbone.resnet.build_resnet_backbone
_DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
_EPSILON = 1e-5


def check(encoder: Encoder) -> None:
    """See whether detectron2's configuration can name this encoder.

    Raises:
        UnsupportedFormatError: It cannot.
    """
    name = encoder.spec.name
    if encoder.spec.stem == "cifar":
        raise UnsupportedFormatError(
            "detectron2's ResNet begins with 7×7, stride 2 and max-pooling, and its configuration knows no other stem"
        )
    plan = resnet_plan(encoder.module, name)
    if (plan.block, plan.depths) not in _DEPTHS:
        raise UnsupportedFormatError(
            f"{name} has stages of {', '.join(map(str, plan.depths))} {plan.block} blocks; detectron2 has ResNet-18, "
            "34, 50, 101 and 152"
        )
    for what, widths in (("stages", plan.widths), ("3×3 convolutions", plan.inner_widths)):
        if any(after != 2 * before for before, after in pairwise(widths)):
            raise UnsupportedFormatError(
                f"{name} has {what} of {', '.join(map(str, widths))} channels; in detectron2 they double"
            )
    if plan.block == "basic" and (plan.widths[0] != 64 or plan.stem_width != 64):
        raise UnsupportedFormatError(
            f"{name} begins with {plan.widths[0]} channels; detectron2's ResNet-18 and 34 begin with 64"
        )


def write(encoder: Encoder, folder: Path) -> None:
    """Write the pickle, and a piece of configuration that fits it."""
    arrays = {}
    for key, value in encoder.module.state_dict().items():
        place = place_of(key)
        if place is None:
            raise UnsupportedFormatError(f"detectron2's ResNet has no place for {key}")
        if place.name != "num_batches_tracked":  # nothing there looks at it
            arrays[_name(place)] = value.numpy()
    content = {"model": arrays, "__author__": "mce-llm", "matching_heuristics": True}
    with (folder / WEIGHTS).open("wb") as file:
        _Pickler(file, protocol=4).dump(content)
    config = yaml.safe_dump(_config(encoder), sort_keys=False)
    (folder / CONFIG).write_text(config, encoding="utf-8")


def read(encoder: Encoder, folder: Path) -> Outputs:
    """Read both files and compute as detectron2's ResNet does.

    Raises:
        ExportError: The pickle holds anything but arrays, or not those of the network that the configuration names.
    """
    with (folder / WEIGHTS).open("rb") as file:
        content = _Unpickler(file).load()
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["MODEL"]["RESNETS"]
    weights = {name: torch.from_numpy(array) for name, array in content["model"].items()}
    network = _Network(weights, config)

    def run(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs = network(images)
        if network.unused:
            raise ExportError(f"detectron2's ResNet has no use for {sorted(network.unused)[:3]}")
        return outputs

    return run


def usage(encoder: Encoder) -> str:
    """How to use it."""
    mean = ", ".join(f"{255 * v:.3f}" for v in encoder.mean)
    std = ", ".join(f"{255 * v:.3f}" for v in encoder.std)
    return (
        f"Merge `{CONFIG}` into the configuration of a detector whose backbone is a ResNet (C4, FPN, …), with "
        f"`MODEL.WEIGHTS` set to the path of `{WEIGHTS}`:\n\n"
        "```python\n"
        "from detectron2.config import get_cfg\n\n"
        "cfg = get_cfg()\n"
        'cfg.merge_from_file("…/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")\n'
        f'cfg.merge_from_file("PATH_OF_THIS_FOLDER/{CONFIG}")\n'
        f'cfg.MODEL.WEIGHTS = "PATH_OF_THIS_FOLDER/{WEIGHTS}"\n'
        "```\n\n"
        "The encoder was trained on RGB, scaled to [0, 1], then normalised. detectron2 reads 0 to 255 and BGR unless told "
        f"otherwise, so the configuration has `INPUT.FORMAT: RGB`, and mean and std times 255: [{mean}] and [{std}]. Its "
        "strides are in the 3×3 convolutions (`STRIDE_IN_1X1: False`). Encoders of self-supervised learning are usually "
        "fine-tuned with `MODEL.BACKBONE.FREEZE_AT: 0` and `MODEL.RESNETS.NORM: SyncBN`.\n\n"
        "The check below was made with a forward pass written after detectron2's ResNet, not with detectron2 itself.\n"
    )


def _name(place: Place) -> str:
    branch = f"conv{place.branch}" if place.branch else "shortcut"
    where = "stem" if place.stage == 0 else f"res{place.stage + 1}.{place.block}"
    return f"{where}.{branch}.{'norm.' if place.norm else ''}{place.name}"


def _config(encoder: Encoder) -> dict[str, Any]:
    plan = resnet_plan(encoder.module, encoder.spec.name)
    return {
        "MODEL": {
            "PIXEL_MEAN": [round(255 * value, 3) for value in encoder.mean],
            "PIXEL_STD": [round(255 * value, 3) for value in encoder.std],
            "RESNETS": _resnet_config(plan),
        },
        "INPUT": {"FORMAT": "RGB"},
    }


def _resnet_config(plan: ResNetPlan) -> dict[str, Any]:
    config: dict[str, Any] = {
        "DEPTH": _DEPTHS[plan.block, plan.depths],
        "STEM_OUT_CHANNELS": plan.stem_width,
        "RES2_OUT_CHANNELS": plan.widths[0],
        "STRIDE_IN_1X1": False,
    }
    if plan.block == "bottleneck":
        config |= {"NUM_GROUPS": plan.groups, "WIDTH_PER_GROUP": plan.inner_widths[0] // plan.groups}
    return config


class _Network:
    """detectron2's ResNet in evaluation mode: the depth says the blocks, the names say the weights."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.weights, self.config = weights, config
        self.unused = set(weights)
        self.block, self.depths = next(plan for plan, depth in _DEPTHS.items() if depth == config["DEPTH"])

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps and their mean."""
        x = F.relu(self._convolution("stem.conv1", images, stride=2))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        maps = {}
        for stage, depth in enumerate(self.depths, 1):
            for number in range(depth):
                x = self._block(f"res{stage + 1}.{number}", x, stride=2 if stage > 1 and number == 0 else 1)
            maps[f"stage{stage}"] = x
        return {"features": x.mean(dim=(2, 3)), **maps}

    def _block(self, name: str, x: Tensor, stride: int) -> Tensor:
        last = "conv3" if self.block == "bottleneck" else "conv2"
        width = len(self._take(f"{name}.{last}.weight"))
        shortcut = self._convolution(f"{name}.shortcut", x, stride) if x.shape[1] != width else x
        if self.block == "basic":
            y = F.relu(self._convolution(f"{name}.conv1", x, stride))
            return F.relu(self._convolution(f"{name}.conv2", y) + shortcut)
        in_first, in_second = (stride, 1) if self.config["STRIDE_IN_1X1"] else (1, stride)
        y = F.relu(self._convolution(f"{name}.conv1", x, in_first))
        y = F.relu(self._convolution(f"{name}.conv2", y, in_second, groups=self.config["NUM_GROUPS"]))
        return F.relu(self._convolution(f"{name}.conv3", y) + shortcut)

    def _convolution(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = self._take(f"{name}.weight")
        y = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        mean, variance, scale, shift = (
            self._take(f"{name}.norm.{part}") for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(y, mean, variance, scale, shift, eps=_EPSILON)

    def _take(self, name: str) -> Tensor:
        if name not in self.weights:
            raise ExportError(f"detectron2's ResNet-{self.config['DEPTH']} misses {name}")
        self.unused.discard(name)
        return self.weights[name]


class _Pickler(pickle.Pickler):
    """Writes arrays as calls of `numpy.ndarray` itself.

    The usual pickle of an array names an inner module that NumPy 2 has moved, so older versions cannot read it.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            # From a bytearray, which makes an array that can be written to, as torch wants it.
            return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    """Reads nothing but plain containers and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        known = {("numpy", "ndarray"): np.ndarray, ("builtins", "bytearray"): bytearray}
        if (module, name) not in known:
            raise ExportError(f"the pickle asks for {module}.{name}, where there should be arrays alone")
        return known[module, name]
