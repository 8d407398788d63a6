"""torch.export's layout: the network itself as a program, which torch alone can load. Any encoder has a place in it.

It is the only format for encoders that no library has, such as ResNets with the stem for small images.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from mce_llm.running.messages import cause
from mce_llm.vision.exporting.encoder import Encoder, Outputs
from mce_llm.vision.exporting.errors import UnsupportedFormatError

PROGRAM = "encoder.pt2"
_TRACED_BATCH = 2  # a batch of one would be taken for a constant


def check(encoder: Encoder) -> None:
    """Every encoder has a place; whether torch can trace it is seen when it is written."""


def write(encoder: Encoder, folder: Path) -> None:
    """Trace the network in evaluation mode, for batches of any size.

    Raises:
        UnsupportedFormatError: torch cannot trace it.
    """
    size = encoder.image_size
    images = torch.zeros(_TRACED_BATCH, 3, size, size)
    module = copy.deepcopy(encoder.module).eval()
    try:
        program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise UnsupportedFormatError(
            f"torch.export cannot trace {encoder.spec.name}: {cause(error)}"
        ) from error
    torch.export.save(program, folder / PROGRAM)


def read(encoder: Encoder, folder: Path) -> Outputs:
    """Load the program; a batch of another size than the traced one is run too."""
    network = torch.export.load(folder / PROGRAM).module()

    def run(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {
                "features": torch.cat([network(images), network(images[:1].repeat(3, 1, 1, 1))])[
                    : len(images)
                ]
            }

    return run


def usage(encoder: Encoder) -> str:
    """How to load it."""
    size = encoder.image_size
    return (
        "```python\n"
        "import torch\n\n"
        f'encoder = torch.export.load("{PROGRAM}").module()\n'
        f"features = encoder(images)  # (B, 3, {size}, {size}), normalised, to (B, {encoder.feature_dim})\n"
        "```\n\n"
        f"It is in evaluation mode, for images of {size}×{size} pixels in batches of any size. It cannot be trained on.\n"
    )
