"""Which encoder a probe looks at: one that was pretrained, one with random weights, or the pixels themselves.

How images are prepared belongs to the encoder, so what its file says of that overrides the data set's own values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mce_llm.running.processes import say
from mce_llm.running.settings import mapping_of, raise_all
from mce_llm.vision.data import DataSettings, ImageSource
from mce_llm.vision.models import TEACHER, BackboneSpec, build_backbone, load_backbone
from mce_llm.vision.models.backbone_files import FACTS, WEIGHTS
from mce_llm.vision.models.backbones import STEMS
from mce_llm.vision.running import Input, input_of_file, input_of_images

_PREPARATION = ("image_size", "mean", "std")


@dataclass
class EncoderSettings:
    """The encoder: exactly one of `encoder`, `backbone` and `pixels`."""

    encoder: str | None = field(
        default=None,
        metadata={"help": "Folder of a pretraining run, or any with backbone.safetensors in it."},
    )
    use_teacher: bool = field(
        default=False, metadata={"help": "Take the averaged teacher's encoder, in the folder teacher inside."}
    )
    backbone: str | None = field(
        default=None,
        metadata={
            "help": "Instead of `encoder`: a model by name with random weights (a function of seed), as the baseline "
            "that pretraining has to beat. resnet50 is torchvision's, timm/resnet50d timm's."
        },
    )
    stem: str = field(
        default="imagenet",
        metadata={"help": "With `backbone`: imagenet, or cifar for a 3×3 stem without max-pooling."},
    )
    backbone_kwargs: str | None = field(
        default=None, metadata={"help": "With `backbone`: further arguments of its constructor, a mapping."}
    )
    pixels: bool = field(
        default=False,
        metadata={"help": "Instead of `encoder`: the normalised pixels as features, a baseline."},
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Not exactly one encoder, or options that belong to another kind.
        """
        problems: list[str] = []
        given = [
            name
            for name, there in (
                ("encoder", self.encoder is not None),
                ("backbone", self.backbone is not None),
                ("pixels", self.pixels),
            )
            if there
        ]
        if len(given) != 1:
            problems.append(
                "give exactly one of encoder (a pretrained one), backbone (random weights) and pixels, got "
                + (" and ".join(given) or "none")
            )
        if self.stem not in STEMS:
            problems.append(f"stem must be {' or '.join(STEMS)}, got {self.stem!r}")
        self._kwargs = mapping_of("backbone_kwargs", self.backbone_kwargs, problems)
        if self.backbone is None:
            problems += [
                f"{name} belongs to backbone, which is not given; a pretrained encoder's file says its own"
                for name, there in (
                    ("stem", self.stem != "imagenet"),
                    ("backbone_kwargs", bool(self._kwargs)),
                )
                if there
            ]
        if self.use_teacher and self.encoder is None:
            problems.append("use_teacher needs encoder, the folder of a pretraining run with a teacher")
        raise_all(problems)


class Encoder(NamedTuple):
    """An encoder and what is known of it.

    Attributes:
        module: Images (B, 3, H, W) to features (B, d); on the CPU, in evaluation mode.
        spec: How it was built; None for pixels.
        facts: For summary.json: name, kind (`pretrained`, `random` or `pixels`), and all that backbone.json says.
    """

    module: nn.Module
    spec: BackboneSpec | None
    facts: dict[str, Any]


def open_encoder(settings: EncoderSettings, seed: int) -> Encoder:
    """Load or build the encoder, and say plainly what it is.

    Args:
        settings: Which one.
        seed: Of random weights; the process's random state is left as it was.

    Returns:
        The encoder.

    Raises:
        BackboneFileError: The folder holds no encoder that can be read.
        BackboneError: There is no model of that name, or it refuses its arguments.
    """
    if settings.pixels:
        say("features are the normalised pixels: a baseline, no encoder is evaluated")
        return Encoder(nn.Flatten(), None, {"kind": "pixels", "name": "pixels"})
    if settings.encoder is not None:
        folder = Path(settings.encoder).expanduser()
        if settings.use_teacher:
            folder /= TEACHER
        module, spec, facts = load_backbone(folder)
        say(f"encoder: {spec.name} from {folder}" + _training_of(facts))
        return Encoder(module.eval(), spec, {"kind": "pretrained", "folder": str(folder), **facts})
    assert settings.backbone is not None
    spec = BackboneSpec(name=settings.backbone, stem=settings.stem, kwargs=settings._kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_backbone(spec)
    say(f"UNTRAINED ENCODER: {spec.name} has random weights (seed {seed}). This is a baseline, not a result.")
    facts = {"kind": "random", "name": spec.name, "stem": spec.stem, "kwargs": dict(spec.kwargs)}
    return Encoder(module.eval(), spec, {**facts, "epochs": 0, "weights_seed": seed})


def preparation_of(settings: EncoderSettings) -> dict[str, Any]:
    """Image size and normalisation that an encoder's file says; empty where there is none that can be read.

    Args:
        settings: Which encoder.

    Returns:
        Those of image_size, mean and std that it has.
    """
    if (weights := _weights_of(settings)) is None:
        return {}
    try:
        facts = json.loads((weights.parent / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # which opening the encoder says
        return {}
    return {name: facts[name] for name in _PREPARATION if facts.get(name) is not None}


def _weights_of(settings: EncoderSettings) -> Path | None:
    """The file of a pretrained encoder's weights; None for the other kinds."""
    if settings.encoder is None:
        return None
    folder = Path(settings.encoder).expanduser()
    folder = folder.parent if folder.name == WEIGHTS else folder
    return folder / TEACHER / WEIGHTS if settings.use_teacher else folder / WEIGHTS


def what_is_read(settings: EncoderSettings, train: ImageSource, test: ImageSource) -> dict[str, Input]:
    """What a probe reads, to be known again by a run that goes on.

    Args:
        settings: Name the encoder.
        train: The images to train on.
        test: Those to evaluate on, which alone may be others.

    Returns:
        Name for messages → what it is.
    """
    inputs = {
        "training images": input_of_images(train),
        "images for evaluation": input_of_images(test, fixed=False),
    }
    if (weights := _weights_of(settings)) is not None:
        inputs["the encoder's weights"] = input_of_file(weights)
    return inputs


def prepared_as(encoder: Encoder, data: DataSettings, given: Mapping[str, Any]) -> DataSettings:
    """The data settings with the image size and normalisation that the encoder was trained on, unless others were given.

    Args:
        encoder: What `open_encoder` gave.
        data: The settings.
        given: The settings that were given by name; only these override the encoder's file.

    Returns:
        Settings to open images with. What was adopted, and what differs from the encoder's, is said.
    """
    adopted: dict[str, Any] = {}
    for name in _PREPARATION:
        own = encoder.facts.get(name)
        if own is None:
            continue
        if given.get(name) is None:
            adopted[name] = list(own) if name != "image_size" else int(own)
        elif json.dumps(given[name]) != json.dumps(own):
            say(f"{name} {given[name]} differs from the {own} that the encoder was pretrained with")
    if adopted:
        say("from the encoder's file: " + ", ".join(f"{name} {value}" for name, value in adopted.items()))
    return replace(data, **adopted)


def _training_of(facts: Mapping[str, Any]) -> str:
    told = [f"{name} {facts[name]}" for name in ("method", "epochs") if facts.get(name) is not None]
    return f" ({', '.join(told)})" if told else ""
