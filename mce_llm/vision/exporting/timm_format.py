"""timm's layout: config.json and model.safetensors, a folder for `timm.create_model("local-dir:…")` or the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from packaging.version import Version
from safetensors.torch import save_file

from mce_llm.vision.exporting.encoder import Encoder, Outputs, outputs_of
from mce_llm.vision.exporting.errors import UnsupportedFormatError
from mce_llm.vision.exporting.plan import resnet_plan
from mce_llm.vision.exporting.torchvision_format import FROM_TIMM, TRAINING_ONLY

WEIGHTS = "model.safetensors"
_TO_TIMM = {theirs: ours for ours, theirs in FROM_TIMM.items()}
_LOCAL_FOLDERS = Version("1.0.16")  # the first that reads local-dir:


def check(encoder: Encoder) -> None:
    """See whether timm has this encoder.

    Raises:
        UnsupportedFormatError: It has not.
    """
    if encoder.spec.stem == "cifar":
        raise UnsupportedFormatError(
            f"a timm folder names one of timm's models, and {encoder.library_name} has no argument for a stem of 3×3, "
            "stride 1, without max-pooling"
        )
    if encoder.is_timm:
        return
    resnet_plan(encoder.module, encoder.spec.name)
    name = encoder.library_name
    if not timm.is_model(name):
        raise UnsupportedFormatError(f"timm has no model {name}")
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0, **_arguments(encoder)).state_dict()
    own = encoder.module.state_dict()
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in theirs.items()}:
        raise UnsupportedFormatError(f"timm's {name} has other widths or names than torchvision's")


def write(encoder: Encoder, folder: Path) -> None:
    """Write the state dict and the description that timm builds from."""
    weights = {name: value.contiguous() for name, value in encoder.module.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with torch.device("meta"):
        model: Any = timm.create_model(encoder.library_name, num_classes=0, **_arguments(encoder))
    theirs = model.pretrained_cfg
    config = {
        "architecture": encoder.library_name,
        "num_classes": 0,
        "num_features": encoder.feature_dim,
        "model_args": _arguments(encoder),
        "pretrained_cfg": {
            "tag": str(encoder.facts.get("method", "pretrained")),
            "custom_load": False,
            "input_size": [3, encoder.image_size, encoder.image_size],
            "fixed_input_size": bool(theirs.get("fixed_input_size", False)),
            # As in evaluation here: the shorter side resized to 256/224 of the size, the centre cut out.
            "interpolation": "bilinear",
            "crop_pct": 224 / 256,
            "crop_mode": "center",
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": theirs.get("first_conv"),
            "classifier": theirs.get("classifier"),
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read(encoder: Encoder, folder: Path) -> Outputs:
    """Load the folder by timm, or by versions that read no local folders the file of weights."""
    if Version(timm.__version__) >= _LOCAL_FOLDERS:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        model = timm.create_model(
            encoder.library_name, num_classes=0, checkpoint_path=str(folder / WEIGHTS), **_arguments(encoder)
        )
    return outputs_of(model.eval())


def usage(encoder: Encoder) -> str:
    """How to load it."""
    arguments = "".join(f", {name}={value!r}" for name, value in _arguments(encoder).items())
    return (
        "```python\n"
        "import timm\n\n"
        'model = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True)  # timm 1.0.16 or later\n'
        f'# any timm 1.x: timm.create_model("{encoder.library_name}", num_classes=0, '
        f'checkpoint_path="{WEIGHTS}"{arguments})\n'
        "config = timm.data.resolve_data_config(model.pretrained_cfg)\n"
        "transform = timm.data.create_transform(**config)  # resize, crop and normalise as in pretraining's evaluation\n"
        "```\n\n"
        "With `num_classes=10` it comes with a new classifier. transformers reads this folder too: "
        '`AutoModel.from_pretrained("PATH_OF_THIS_FOLDER")` gives a TimmWrapperModel.\n'
    )


def _arguments(encoder: Encoder) -> dict[str, Any]:
    """The arguments of timm's model for the encoder; those that only concern initial weights are left out."""
    given = {name: value for name, value in encoder.spec.kwargs.items() if name not in TRAINING_ONLY}
    if encoder.is_timm:
        return given
    unknown = sorted(given.keys() - _TO_TIMM.keys())
    if unknown:
        raise UnsupportedFormatError(
            f"timm's {encoder.library_name} has no argument for torchvision's {', '.join(unknown)}"
        )
    return {_TO_TIMM[name]: value for name, value in given.items()}
