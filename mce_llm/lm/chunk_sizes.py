"""How many elements a chunk of a tensor may have, by the type of its device."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def elements_on(device: torch.device, elements: Mapping[str, int]) -> int:
    """The entry for a device; accelerators other than CUDA count as CUDA.

    Args:
        device: Where the tensor is.
        elements: Numbers of elements for `cpu` and `cuda`.
    """
    return elements.get(device.type, elements["cuda"])
