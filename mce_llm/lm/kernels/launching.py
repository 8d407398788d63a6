"""Where the kernels can run, and the sizes of their tiles.

`MCE_LLM_KERNELS` in the environment chooses: `auto` (the default) takes them where Triton compiles for the device,
`torch` never does, and `triton` refuses to compute a loss that has kernels without them.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

from mce_llm.errors import MceLlmError
from mce_llm.running.messages import nearest_hint

VARIABLE = "MCE_LLM_KERNELS"
CHOICES = ("auto", "torch", "triton")
_CAPABILITY = (8, 0)  # of NVIDIA GPUs: the oldest that Triton still compiles for


class KernelChoiceError(MceLlmError, ValueError):
    """The environment asks for kernels that are not there, or for something unknown."""


def chosen() -> str:
    """What the environment asks for, one of `CHOICES`.

    Raises:
        KernelChoiceError: Something else.
    """
    choice = os.environ.get(VARIABLE, "").strip().lower() or "auto"
    if choice not in CHOICES:
        raise KernelChoiceError(
            f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {choice!r}{nearest_hint(choice, CHOICES)}"
        )
    return choice


def runs_on(device: torch.device) -> bool:
    """Whether Triton is installed and compiles for this device, or interprets its programs on the CPU.

    Args:
        device: Where the tensors are.
    """
    if not _installed():
        return False
    if interpreted():
        return device.type == "cpu"
    return device.type == "cuda" and has_gpu() and _compiles_for(device)


def has_gpu() -> bool:
    """Whether there is one; a CUDA tensor need not have any, since torch also traces shapes alone."""
    return torch.cuda.is_available()


def interpreted() -> bool:
    """Whether Triton was told to interpret its programs (TRITON_INTERPRET=1), which is slow and for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number ≥ 1."""
    return 1 << (number - 1).bit_length()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


@cache
def _compiles_for(device: torch.device) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _CAPABILITY
