"""torchvision's layout: a state dict under torchvision's names, without the classifier, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from mce_llm.vision.exporting.encoder import Encoder, Outputs, outputs_of
from mce_llm.vision.exporting.errors import ExportError, UnsupportedFormatError
from mce_llm.vision.exporting.plan import resnet_plan

WEIGHTS = "model.safetensors"
# Arguments of timm's ResNets that torchvision's have under another name.
FROM_TIMM = {"cardinality": "groups", "base_width": "width_per_group"}
# Arguments that only concern initial weights.
TRAINING_ONLY = ("zero_init_residual", "zero_init_last")


def check(encoder: Encoder) -> None:
    """See whether torchvision has this encoder.

    Raises:
        UnsupportedFormatError: It has not.
    """
    if encoder.spec.stem == "cifar":
        raise UnsupportedFormatError(
            f"torchvision's {encoder.library_name} begins with 7×7, stride 2 and max-pooling, and takes no other stem "
            "without surgery; this one begins with 3×3, stride 1"
        )
    if not encoder.is_timm:
        return
    resnet_plan(encoder.module, encoder.spec.name)
    name = encoder.library_name
    if name not in models.list_models(module=models):
        raise UnsupportedFormatError(f"torchvision has no model {name}")
    own, theirs = encoder.module.state_dict(), _body(_build(encoder).state_dict())
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in theirs.items()}:
        raise UnsupportedFormatError(
            f"torchvision's {name} has other widths than this one, and no argument for them"
        )


def write(encoder: Encoder, folder: Path) -> None:
    """Write the state dict."""
    weights = {name: value.contiguous() for name, value in encoder.module.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def read(encoder: Encoder, folder: Path) -> Outputs:
    """Load it as its reader would, and take the features from what enters the classifier.

    Raises:
        ExportError: More than the classifier's weights are missing, or some are unknown to torchvision.
    """
    model = _build(encoder)
    found = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    heads = _classifiers(model, found.missing_keys)
    if found.unexpected_keys or len(heads) != 1:
        raise ExportError(
            f"torchvision's {encoder.library_name} does not take these weights: {len(found.missing_keys)} missing "
            f"{found.missing_keys[:3]}, {len(found.unexpected_keys)} unknown {found.unexpected_keys[:3]}"
        )
    model.set_submodule(heads[0], nn.Identity())
    return outputs_of(model.eval())


def usage(encoder: Encoder) -> str:
    """How to load it, in five lines."""
    model = _build(encoder, device="meta")
    missing = [key for key in model.state_dict() if key not in encoder.module.state_dict()]
    head = _classifiers(model, missing)[0]
    place = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in head.split("."))
    arguments = "".join(f", {name}={value!r}" for name, value in _arguments(encoder).items())
    return (
        "```python\n"
        "import torch, torchvision\n"
        "from safetensors.torch import load_file\n\n"
        f'model = torchvision.models.get_model("{encoder.library_name}", weights=None{arguments})\n'
        f'model.load_state_dict(load_file("{WEIGHTS}"), strict=False)  # only {head}.* is missing\n'
        f"model{place} = torch.nn.Identity()  # features instead of classes; leave this line out to train a classifier\n"
        "```\n"
    )


def _arguments(encoder: Encoder) -> dict[str, Any]:
    """The arguments of torchvision's model for the encoder; those that only concern initial weights are left out."""
    given = {name: value for name, value in encoder.spec.kwargs.items() if name not in TRAINING_ONLY}
    if not encoder.is_timm:
        return given
    unknown = sorted(given.keys() - FROM_TIMM.keys())
    if unknown:
        raise UnsupportedFormatError(
            f"torchvision's {encoder.library_name} has no argument for timm's {', '.join(unknown)}"
        )
    return {FROM_TIMM[name]: value for name, value in given.items()}


def _build(encoder: Encoder, device: str = "cpu") -> nn.Module:
    arguments = _arguments(encoder)
    with torch.device(device):
        return models.get_model(encoder.library_name, weights=None, **arguments)


def _classifiers(model: nn.Module, missing: list[str]) -> list[str]:
    """The linear layers that missing weights are of; empty where some are of anything else."""
    owners = sorted({key.rpartition(".")[0] for key in missing})
    linear = all(isinstance(model.get_submodule(name), nn.Linear) for name in owners)
    return owners if linear else []


def _body(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}
