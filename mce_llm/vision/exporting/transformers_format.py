"""transformers' layout: config.json, model.safetensors and preprocessor_config.json, for AutoModel and ResNetBackbone.

AutoBackbone takes ids of the hub alone and asks for them there, so a folder is read by ResNetBackbone itself.
transformers' ResNet strides in the 3×3 convolution where `downsample_in_bottleneck` is false, as torchvision's does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, ResNetBackbone, ResNetConfig, ResNetModel
from transformers.utils import logging

from mce_llm.vision.exporting.encoder import Encoder, Outputs
from mce_llm.vision.exporting.errors import ExportError, UnsupportedFormatError
from mce_llm.vision.exporting.plan import Place, ResNetPlan, place_of, resnet_plan

_REDUCTION = 4  # a bottleneck's width over that of its 3×3 convolution, fixed in transformers
_BILINEAR = 2  # as Pillow numbers its filters


def check(encoder: Encoder) -> None:
    """See whether transformers' ResNet can be this encoder.

    Raises:
        UnsupportedFormatError: It cannot.
    """
    name = encoder.spec.name
    if encoder.spec.stem == "cifar":
        raise UnsupportedFormatError(
            "transformers' ResNet begins with 7×7, stride 2 and max-pooling, and its configuration knows no other stem"
        )
    plan = resnet_plan(encoder.module, name)
    if plan.groups != 1:
        raise UnsupportedFormatError(
            f"{name} has convolutions in {plan.groups} groups, which transformers' ResNet has not"
        )
    if plan.block == "bottleneck" and any(
        width != _REDUCTION * inner for width, inner in zip(plan.widths, plan.inner_widths, strict=True)
    ):
        raise UnsupportedFormatError(
            f"{name} has 3×3 convolutions of {plan.inner_widths[0]} channels in blocks of {plan.widths[0]}; those of "
            f"transformers' ResNet have a quarter, {plan.widths[0] // _REDUCTION}"
        )


def write(encoder: Encoder, folder: Path) -> None:
    """Write model, configuration and image processor."""
    plan = resnet_plan(encoder.module, encoder.spec.name)
    model = ResNetModel(_config(plan))
    model.load_state_dict(renamed(encoder.module.state_dict()))
    with _no_progress_bars():
        model.save_pretrained(folder)
    size = encoder.image_size
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(size * 256 / 224)},
        "resample": _BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def read(encoder: Encoder, folder: Path) -> Outputs:
    """Load it twice, as the model that pools and as the backbone that gives feature maps.

    Raises:
        ExportError: transformers finds weights missing, or some that it does not know.
    """
    with _no_progress_bars():
        model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
        backbone = ResNetBackbone.from_pretrained(folder, out_features=[f"stage{n}" for n in range(1, 5)])
    problems = {kind: sorted(found) for kind, found in report.items() if found}
    if problems:
        raise ExportError(f"transformers does not take the weights of {encoder.spec.name}: {problems}")
    model.eval()
    backbone.eval()

    def run(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            features = model(images).pooler_output.flatten(1)
            maps = backbone(images).feature_maps
        return {"features": features, **{f"stage{n}": value for n, value in enumerate(maps, 1)}}

    return run


def usage(encoder: Encoder) -> str:
    """How to load it."""
    return (
        "```python\n"
        "import torch\n"
        "from transformers import AutoImageProcessor, AutoModel, ResNetBackbone\n\n"
        'folder = "PATH_OF_THIS_FOLDER"\n'
        "processor = AutoImageProcessor.from_pretrained(folder)\n"
        "model = AutoModel.from_pretrained(folder).eval()\n"
        "with torch.no_grad():\n"
        '    features = model(**processor(image, return_tensors="pt")).pooler_output.flatten(1)'
        f"  # (1, {encoder.feature_dim})\n"
        'backbone = ResNetBackbone.from_pretrained(folder, out_features=["stage2", "stage3", "stage4"])  # feature maps\n'
        "```\n\n"
        "`AutoModelForImageClassification.from_pretrained(folder, num_labels=10)` comes with a new classifier.\n"
    )


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A plain ResNet's weights under transformers' names."""
    found = {}
    for key, value in weights.items():
        place = place_of(key)
        if place is None:
            raise UnsupportedFormatError(f"transformers' ResNet has no place for {key}")
        found[_name(place)] = value
    return found


def _name(place: Place) -> str:
    part = f"{'normalization' if place.norm else 'convolution'}.{place.name}"
    if place.stage == 0:
        return f"embedder.embedder.{part}"
    branch = f"layer.{place.branch - 1}" if place.branch else "shortcut"
    return f"encoder.stages.{place.stage - 1}.layers.{place.block}.{branch}.{part}"


def _config(plan: ResNetPlan) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=plan.stem_width,
        hidden_sizes=list(plan.widths),
        depths=list(plan.depths),
        layer_type=plan.block,
        downsample_in_first_stage=False,
        downsample_in_bottleneck=False,
    )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """A hundred megabytes are read in a second; a bar for each reading says nothing."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
