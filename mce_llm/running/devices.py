"""What differs between CUDA (ROCm among it), XPU, MPS and the CPU: waiting for a device, its memory, its random numbers.

All of it is asked of the module that torch has for a type of device. `torch.accelerator` knows memory from 2.9 on alone,
and random states later still.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def device_module(device: torch.device) -> Any:
    """`torch.cuda`, `torch.xpu`, `torch.mps`, …; None for the CPU and for types that torch has no module for.

    Args:
        device: Any.
    """
    return None if device.type == "cpu" else getattr(torch, device.type, None)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done everything that it was given; nothing to wait for on the CPU.

    Args:
        device: Any.
    """
    module = device_module(device)
    if device.type == "mps":
        module.synchronize()  # there is one, and it takes none
    elif module is not None:
        module.synchronize(device)


def peak_memory(device: torch.device) -> tuple[int, int] | None:
    """The most bytes that tensors and the allocator have held on a device since the start.

    Args:
        device: Any.

    Returns:
        (allocated, reserved), or None where torch does not count them (CPU, MPS).
    """
    module = device_module(device)
    if not hasattr(module, "max_memory_allocated"):
        return None
    return int(module.max_memory_allocated(device)), int(module.max_memory_reserved(device))


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """Restore torch's random states, that of the CPU and that of one device, at the end of the block.

    Args:
        device: Any.
    """
    module = device_module(device)
    if module is None:
        with torch.random.fork_rng(devices=[]):
            yield
    elif device.type == "mps":  # of which `fork_rng` keeps nothing
        before = module.get_rng_state()
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            module.set_rng_state(before)
    else:
        with torch.random.fork_rng([device], device_type=device.type):
            yield


@contextmanager
def same_random_states() -> Iterator[None]:
    """Restore torch's random states, those of the CPU and of all devices in use, at the end of the block."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    module: Any = None if device is None else device_module(device)
    with same_random_state(device if device is not None and device.type == "mps" else torch.device("cpu")):
        if not hasattr(module, "get_rng_state_all") or not module.is_initialized():
            yield
            return
        before = module.get_rng_state_all()
        try:
            yield
        finally:
            module.set_rng_state_all(before)
