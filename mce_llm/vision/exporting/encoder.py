"""A trained encoder with everything that an export says of it, and what it gives for a batch of images.

Reading the folder is the models' matter (`mce_llm.vision.models.load_backbone`).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mce_llm.vision.data.sources import IMAGENET
from mce_llm.vision.models import TEACHER, BackboneFileError, BackboneSpec, load_backbone

# Images (B, 3, H, W) to named outputs: `features` (B, d) always, feature maps `stage1` to `stage4` where there are any.
Outputs = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Encoder:
    """An encoder to export.

    Attributes:
        module: The network, in evaluation mode, without gradients.
        spec: How to build it.
        facts: What backbone.json says.
        digest: SHA-256 of its file of weights, or None where it has none.
    """

    module: nn.Module
    spec: BackboneSpec
    facts: Mapping[str, Any]
    digest: str | None = None

    @property
    def image_size(self) -> int:
        """Side of the images it was trained on; 224 where that is not on record."""
        return int(self.facts.get("image_size", 224))

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, in [0, 1]; ImageNet's where it is not on record."""
        return tuple(self.facts.get("mean") or IMAGENET.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Of each channel, in [0, 1]; ImageNet's where it is not on record."""
        return tuple(self.facts.get("std") or IMAGENET.std)

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return int(self.facts["feature_dim"])

    @property
    def is_timm(self) -> bool:
        """Whether it is timm's rather than torchvision's."""
        return self.spec.name.startswith("timm/")

    @property
    def library_name(self) -> str:
        """Its name in its library, without a tag of pretrained weights."""
        return self.spec.name.removeprefix("timm/").split(".")[0]

    def with_generic_weights(self, seed: int = 0) -> Encoder:
        """The same network with weights that leave nothing out.

        In an untrained encoder residual branches count for nothing (their last scale starts at zero), and in any
        encoder a wrong statistic may be hard to see. Here every tensor matters for the output.

        Args:
            seed: Of the weights.

        Returns:
            A copy with random scales, shifts and statistics of batch norms, and convolutions that keep magnitudes.
        """
        module, generator = copy.deepcopy(self.module), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, value in module.state_dict().items():
                if not value.is_floating_point():
                    continue
                random = torch.rand(value.shape, generator=generator, dtype=torch.float32)
                if value.ndim >= 2:
                    fan_in = value[0].numel()
                    random = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
                elif key.endswith(("bias", "running_mean")):
                    random = 0.2 * (random - 0.5)
                else:
                    random = 0.5 + random
                value.copy_(random)
        return Encoder(module, self.spec, self.facts)


def read_encoder(folder: Path | str, *, use_teacher: bool = False) -> Encoder:
    """Read the encoder that a pretraining run left.

    Args:
        folder: The run's output_dir.
        use_teacher: Take the averaged teacher, in the folder `teacher` below it.

    Returns:
        The encoder.

    Raises:
        BackboneFileError: There is none, or it cannot be read.
    """
    folder = Path(folder).expanduser()
    if use_teacher:
        if folder.is_dir() and not (folder / TEACHER).is_dir():
            raise BackboneFileError(
                f"{folder} has no folder {TEACHER}/, so there is no averaged teacher to export; leave use_teacher out"
            )
        folder = folder / TEACHER
    module, spec, facts = load_backbone(folder)
    weights = folder if folder.is_file() else folder / "backbone.safetensors"
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Encoder(module.eval().requires_grad_(False), spec, facts, digest)


def outputs_of(module: nn.Module) -> Outputs:
    """What an encoder gives, with the feature maps of its four stages if it is a ResNet.

    Args:
        module: The encoder.

    Returns:
        A function of images.
    """
    stages = [f"layer{n}" for n in range(1, 5)]
    has_stages = all(hasattr(module, name) for name in stages)

    def run(images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}

        def keep(number: int) -> Callable[[nn.Module, Any, Tensor], None]:
            def hook(_: nn.Module, __: Any, output: Tensor) -> None:
                maps[f"stage{number}"] = output.clone()

            return hook

        handles = [
            module.get_submodule(name).register_forward_hook(keep(number))
            for number, name in enumerate(stages, 1)
            if has_stages
        ]
        try:
            with torch.no_grad():
                return {"features": module(images), **maps}
        finally:
            for handle in handles:
                handle.remove()

    return run
