"""Features of all images of a source, computed once by all processes together, in the source's order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mce_llm.errors import MceLlmError
from mce_llm.running.processes import gather
from mce_llm.vision.data import ViewLoader
from mce_llm.vision.running import progress_bar

_BLOCK_ROWS = (
    16_384  # of a tensor that goes from process to process at once; bounds the memory on the accelerator
)


class FeatureError(MceLlmError, RuntimeError):
    """Features that cannot be used, or are not those of the whole source; the message says how many and where."""


class Features(NamedTuple):
    """What an encoder makes of n images, in the order of their indices.

    Attributes:
        features: (n, d) float32 on the CPU.
        labels: (n,) int64.
        indices: (n,) int64, increasing: places in the source.
    """

    features: Tensor
    labels: Tensor
    indices: Tensor


@torch.no_grad()
def extract_features(
    module: nn.Module, loader: ViewLoader, accelerator: Accelerator, *, description: str = "features"
) -> Features:
    """Encode every image of a loader's source once. All processes call this; all get everything.

    The module is used in evaluation mode on the accelerator's device and under its precision, and is in the mode that
    it came in afterwards. Memory: n·d·4 bytes in every process, and as much again while processes exchange theirs
    (10.5 GB for ImageNet's training images and d = 2048).

    Args:
        module: Images (B, 3, H, W) to rows (B, d).
        loader: Each process's own part of the source, without repetition (`view_loader(…, shuffle=False)`); parts may
            have different sizes.
        accelerator: Of this run.
        description: What stands before the progress bar.

    Returns:
        The features, in the source's order.

    Raises:
        FeatureError: Some features are not finite, rows are not (B, d), or images are missing or come twice.
    """
    was_training = module.training
    module.to(accelerator.device).eval()
    rows, labels, indices = [], [], []
    try:
        for batch in progress_bar(loader, description, total=len(loader)):
            with accelerator.autocast():
                encoded = module(batch.images.to(accelerator.device, non_blocking=True))
            if encoded.ndim != 2:
                raise FeatureError(
                    f"the encoder gives {tuple(encoded.shape)} for a batch of {len(batch.labels)} images, not one row of "
                    "features each"
                )
            rows.append(encoded.float().cpu())
            labels.append(batch.labels)
            indices.append(batch.indices)
    finally:
        module.train(was_training)
    widths = [width for width in gather(rows[0].shape[1] if rows else None) if width is not None]
    if not widths:
        raise FeatureError("there are no images to encode")
    together = Features(
        gather_rows(torch.cat(rows) if rows else torch.empty(0, widths[0]), accelerator),
        gather_rows(torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64), accelerator),
        gather_rows(torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64), accelerator),
    )
    return _checked(together)


def gather_rows(local: Tensor, accelerator: Accelerator) -> Tensor:
    """Put the rows of all processes under each other, in the order of the processes; their numbers may differ.

    Args:
        local: (n_r, …) of this process, on the CPU.
        accelerator: Of this run.

    Returns:
        (Σ n_r, …) on the CPU, in every process.
    """
    if accelerator.num_processes == 1:
        return local
    counts = gather(len(local))
    parts = [local.new_empty(count, *local.shape[1:]) for count in counts]
    for start in range(0, max(counts), _BLOCK_ROWS):
        size = min(_BLOCK_ROWS, max(counts) - start)
        block = local.new_zeros(size, *local.shape[1:])
        mine = local[start : start + size]
        block[: len(mine)] = mine
        block = block.to(accelerator.device)
        blocks = [torch.empty_like(block) for _ in counts]
        torch.distributed.all_gather(blocks, block)
        for part, received in zip(parts, blocks, strict=True):
            there = part[start : start + size]
            there.copy_(received[: len(there)])
    return torch.cat(parts)


def _checked(found: Features) -> Features:
    """In the order of the indices; each must be there once."""
    order = torch.argsort(found.indices, stable=True)
    indices = found.indices[order]
    if not torch.equal(indices, torch.arange(len(indices))):
        twice = len(indices) - len(indices.unique())
        raise FeatureError(
            f"{len(indices)} rows came from the processes, {twice} of them of images that came before; load them with "
            "view_loader(…, shuffle=False), which deals every image out once"
        )
    if not torch.equal(indices, found.indices):
        found = Features(found.features[order], found.labels[order], indices)
    broken = (~torch.isfinite(found.features).all(dim=1)).nonzero().flatten()
    if len(broken):
        raise FeatureError(
            f"{len(broken)} of {len(indices)} images have features that are not finite, the first at index "
            f"{int(broken[0])}; the encoder has diverged, or its precision is too low (mixed_precision: no)"
        )
    return found
