"""Low precision: do weights take in the updates of a learning rate, or does rounding lose them; and is it faster here?

Adam and its relatives move a weight by about the learning rate. bfloat16 has 8 bits of precision: next to a weight w
the nearest other number is 2^(⌊log₂|w|⌋ − 7) away, and an update of less than half of that changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mce_llm.running.cpu_speed import CLEARLY_SLOWER, bfloat16_speed

# Losing this share of the updates is worth a warning.
WORTH_A_WARNING = 0.2
_SAMPLE = 1_000_000
# Where the weights are not at hand: how wide most models are initialised, and trained ones still are.
_USUAL_DEVIATION = 0.02


def lost_share(weights: Tensor, learning_rate: float) -> float:
    """Share of weights that an update of the size of the learning rate leaves as they are.

    Args:
        weights: Of any shape, in the dtype that the optimizer updates.
        learning_rate: The size of an update.

    Returns:
        A number in [0, 1]: the share of weights w with w + lr = w and w − lr = w in their dtype.
    """
    if weights.numel() == 0:
        return 0.0
    weights = weights.detach().cpu()
    exact = weights.double()
    unchanged = [(exact + sign * learning_rate).to(weights.dtype) == weights for sign in (1, -1)]
    return float((unchanged[0] & unchanged[1]).double().mean())


def lost_share_of(model: nn.Module, learning_rate: float) -> tuple[float, torch.dtype | None]:
    """The share over the low-precision weights of a model that are trained, from an even sample of them.

    Args:
        model: With its weights, or shards of them.
        learning_rate: The size of an update.

    Returns:
        The share (0 where all that is trained is float32), and the dtype that loses most.
    """
    worst: tuple[float, torch.dtype | None] = (0.0, None)
    for dtype in (torch.bfloat16, torch.float16):
        trained = [p for p in model.parameters() if p.requires_grad and p.dtype == dtype and not p.is_meta]
        step = max(1, sum(p.numel() for p in trained) // _SAMPLE)
        parts = [p.detach().flatten()[::step].cpu() for p in trained if p.numel()]
        share = lost_share(torch.cat(parts), learning_rate) if parts else 0.0
        if share > worst[0]:
            worst = (share, dtype)
    return worst


def usual_lost_share(dtype: torch.dtype, learning_rate: float) -> float:
    """The share for weights of a usual size, N(0, 0.02²), where a model's own are not at hand."""
    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * _USUAL_DEVIATION
    return lost_share(weights.to(dtype), learning_rate)


def lost_updates_text(share: float, dtype: torch.dtype | None, learning_rate: float) -> str | None:
    """A warning with its remedy, or None where few updates are lost."""
    if dtype is None or share < WORTH_A_WARNING:
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"{share:.0%} of the trained {name} weights are too coarse for learning_rate {learning_rate:g}: an update of that "
        f"size is rounded away. Set dtype: float32, and bf16: true to compute in bfloat16 all the same"
    )


def cpu_precision_text(*, mixed: bool) -> str | None:
    """What to change in the precision of a training on this CPU, or None where it is the faster one.

    Args:
        mixed: Whether it computes in bfloat16.
    """
    speed = bfloat16_speed()
    if mixed and speed < CLEARLY_SLOWER:
        return f"on this CPU a product takes {1 / speed:.1f} times as long in bfloat16 as in float32 (measured); leave bf16 out"
    if not mixed and speed > 1 / CLEARLY_SLOWER:
        return f"on this CPU a product is {speed:.1f} times as fast in bfloat16 (measured): bf16: true"
    return None
