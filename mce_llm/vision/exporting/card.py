"""The README.md of an export: what the encoder is, how it was made, how it is loaded, and what was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from mce_llm.vision.exporting.encoder import Encoder
from mce_llm.vision.exporting.formats import Format

_LIBRARIES = {"torchvision": "pytorch", "detectron2": "detectron2", "torch_export": "pytorch"}
# Facts that the table gives in words of its own, or that are of no use to a reader.
_TOLD = ("format", "name", "stem", "kwargs", "feature_dim", "image_size", "mean", "std")


def model_card(
    encoder: Encoder,
    target: Format,
    deviations: Mapping[str, float],
    versions: Mapping[str, str],
    license: str | None,
) -> str:
    """Write the card.

    Args:
        encoder: What was exported.
        target: To which format.
        deviations: What the check measured.
        versions: Of the libraries it was made and checked with.
        license: Its SPDX identifier, or None where none was declared.

    Returns:
        Markdown, with the block that the Hugging Face hub reads in front.
    """
    method = encoder.facts.get("method")
    tags = ["image-feature-extraction", "self-supervised-learning", "mce-llm", *([method] if method else [])]
    front = ModelCardData(
        library_name=_LIBRARIES.get(target.name, target.name),
        pipeline_tag="image-feature-extraction",
        license=license,
        tags=tags,
    )
    rows = [
        (
            "encoder",
            f"`{encoder.spec.name}`"
            + (f", `{json.dumps(dict(encoder.spec.kwargs))}`" if encoder.spec.kwargs else ""),
        ),
        ("stem", encoder.spec.stem),
        ("features", str(encoder.feature_dim)),
        ("images", f"{encoder.image_size}×{encoder.image_size}, RGB in [0, 1], normalised"),
        ("mean", ", ".join(f"{value:g}" for value in encoder.mean)),
        ("std", ", ".join(f"{value:g}" for value in encoder.std)),
        *((name, _plain(value)) for name, value in encoder.facts.items() if name not in _TOLD),
    ]
    title = f"{encoder.library_name}, pretrained with {method}" if method else encoder.library_name
    checked = ", ".join(f"{name} {value:.2g}" for name, value in deviations.items())
    made_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    terms = (
        f"Declared by whoever exported it: `{license}`."
        if license
        else "None is declared. Weights are the work of whoever trained them; ask before you pass them on."
    )
    return (
        f"---\n{front.to_yaml()}\n---\n\n"
        f"# {title}\n\n"
        "An image encoder without a classifier: images to one vector of features each.\n\n"
        "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows) + "\n\n"
        f"## Use with {target.name.replace('_', '.')}\n\n{target.usage(encoder)}\n"
        "## Checked\n\n"
        "Read back and compared with the encoder on random images, as greatest difference over greatest value: "
        f"{checked}.\nMade with {made_with}.\n\n"
        f"## Licence\n\n{terms} The terms of the images it was trained on may bear on its use as well.\n"
    )


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if text.startswith(
        ("/", "~")
    ):  # a card goes where others read it, and the paths of this machine say nothing there
        text = Path(text).name
    return text.replace("|", "\\|").replace("\n", " ")
