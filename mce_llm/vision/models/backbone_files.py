"""The two files a trained encoder is kept in: backbone.safetensors and backbone.json.

The weights have the library's own names; the JSON says which encoder they are of, and how its images were prepared.
Other formats are written by the export.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mce_llm.errors import MceLlmError
from mce_llm.running.files import whole_file
from mce_llm.running.messages import cause
from mce_llm.vision.models.backbones import BackboneError, BackboneSpec, build_backbone, feature_dim

WEIGHTS = "backbone.safetensors"
FACTS = "backbone.json"
TEACHER = "teacher"
"""The folder below a run's, where the averaged teacher's encoder is."""
_FORMAT = 1


class BackboneFileError(MceLlmError, RuntimeError):
    """A folder that holds no encoder, or none that can be read; the message says why."""


def save_backbone(
    module: nn.Module, spec: BackboneSpec, folder: Path | str, facts: Mapping[str, Any] | None = None
) -> None:
    """Write the weights and their description, each in one move; the JSON last, so it never describes other weights.

    Args:
        module: What `build_backbone(spec)` gave, trained or not.
        spec: Its description.
        folder: Where; made where it is not there.
        facts: What else to note: image_size, mean, std, method, epochs.
    """
    folder = Path(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    note = {
        "format": _FORMAT,
        "name": spec.name,
        "stem": spec.stem,
        "kwargs": dict(spec.kwargs),
        "feature_dim": feature_dim(module, int((facts or {}).get("image_size", 64))),
        **(facts or {}),
    }
    with whole_file(folder / FACTS) as description, whole_file(folder / WEIGHTS) as tensors:
        description.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        save_file(weights, tensors, metadata={"format": "pt"})


def load_backbone(folder: Path | str) -> tuple[nn.Module, BackboneSpec, dict[str, Any]]:
    """Build the encoder that a folder holds, with its weights.

    Args:
        folder: The output of a pretraining run, or of `save_backbone`; of backbone.safetensors its path will do too.

    Returns:
        The encoder on the CPU in training mode, its description, and everything that backbone.json says.

    Raises:
        BackboneFileError: There is no such folder, a file is missing or torn, or the weights are not those of the
            encoder that the JSON names.
    """
    folder = Path(folder).expanduser()
    if folder.name == WEIGHTS:
        folder = folder.parent
    if not (folder / FACTS).is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else ""
        found = f" (found: {inside or 'nothing'})" if folder.is_dir() else "; there is no such folder"
        raise BackboneFileError(
            f"{folder} holds no {FACTS}{found}; give the output_dir of a pretraining run that ended an epoch"
        )
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        spec = BackboneSpec(name=facts["name"], stem=facts["stem"], kwargs=facts["kwargs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneFileError(f"{folder / FACTS} cannot be read: {cause(error)}") from error
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BackboneFileError(f"{folder / WEIGHTS} cannot be read: {cause(error)}") from error
    try:
        module = build_backbone(spec)
    except BackboneError as error:
        raise BackboneFileError(f"{folder / FACTS}: {error}") from error
    load_weights(module, weights, str(folder / WEIGHTS))
    return module, spec, facts


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Load weights that must be exactly those of the module, and finite.

    Args:
        module: The module to fill.
        weights: Its state dict.
        source: Where they are from, for the message.

    Raises:
        BackboneFileError: Names or shapes differ, or values are not finite; the message lists the first of each kind.
    """
    own = module.state_dict()
    if problem := misfit(own, weights, "encoder"):
        raise BackboneFileError(f"{source} does not fit the encoder: {problem}")
    # In the module's own precision: what float64 holds may be infinite there.
    broken = [name for name in own if not bool(torch.isfinite(weights[name].to(own[name].dtype)).all())]
    if broken:
        raise BackboneFileError(
            f"{source} holds NaN or infinity in {len(broken)} of {len(weights)} tensors ({', '.join(broken[:3])}"
            f"{', …' if len(broken) > 3 else ''}): a training that diverged, or a damaged file; take an earlier checkpoint"
        )
    negative = [
        name for name, value in weights.items() if name.endswith("running_var") and bool((value < 0).any())
    ]
    if negative:
        raise BackboneFileError(
            f"{source} holds negative variances of batch norms in {len(negative)} tensors ({', '.join(negative[:3])}"
            f"{', …' if len(negative) > 3 else ''}): a damaged file, or weights under other names"
        )
    ordered = OrderedDict(weights)
    ordered._metadata = own._metadata  # type: ignore[attr-defined] # versions of layers, which files do not keep
    module.load_state_dict(ordered)


def misfit(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], what: str) -> str:
    """Say how weights differ from those of a module.

    Args:
        own: The module's state dict.
        weights: What is to be loaded into it.
        what: The module, for the message.

    Returns:
        How many are missing, too many, or of another shape, with the first names of each; empty where they fit.
    """
    missing = sorted(own.keys() - weights.keys())
    extra = sorted(weights.keys() - own.keys())
    other = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if weights[name].shape != own[name].shape
    ]
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for names, kind in ((missing, "missing"), (extra, f"not of this {what}"), (other, "of another shape"))
        if names
    )
