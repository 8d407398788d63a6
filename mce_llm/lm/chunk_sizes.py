"""How many elements a chunk of a tensor may have, by the device that it is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# Logits of a chunk on a CPU: large enough to keep a matrix product busy, small beside a V×d table.
_CPU_LOGITS = 2**23
# On an accelerator: dW is read and written once a chunk, so few chunks are fast ones. Between a quarter of a GiB and one
# GiB in float32, by the memory of the card.
_FEWEST_LOGITS, _MOST_LOGITS = 2**26, 2**28
_BYTES_OF_CARD_PER_LOGIT = 256


def elements_on(device: torch.device, elements: Mapping[str, int]) -> int:
    """The entry for a device; accelerators other than CUDA count as CUDA.

    Args:
        device: Where the tensor is.
        elements: Numbers of elements for `cpu` and `cuda`.
    """
    return elements.get(device.type, elements["cuda"])


def logit_elements(device: torch.device, memory: float | None = None) -> int:
    """How many logits a chunk may have.

    It depends on how much memory the device has, and not on how much of it is free: chunks decide the order of sums, and
    a run that is continued, or repeated beside another process, should give the same numbers.

    Args:
        device: Where the head's weight is; `meta` stands for a large accelerator.
        memory: Bytes of an accelerator that is not here, for plans.
    """
    if device.type == "cpu":
        return _CPU_LOGITS
    memory = memory or _memory_of(device)
    if memory is None:
        return _MOST_LOGITS if device.type in ("meta", "cuda") else _FEWEST_LOGITS
    fitting = int(memory) // _BYTES_OF_CARD_PER_LOGIT
    power = 1 << (max(fitting, 1).bit_length() - 1)
    return min(max(power, _FEWEST_LOGITS), _MOST_LOGITS)


def _memory_of(device: torch.device) -> int | None:
    """Bytes of the card; None where nothing tells (no card: a dry run; MPS, which shares the machine's)."""
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "get_device_properties") or not module.is_available():
        return None
    return int(module.get_device_properties(device).total_memory)
