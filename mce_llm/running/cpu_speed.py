"""What precision this machine's CPU computes faster in, measured: which instructions it has, PyTorch does not say everywhere."""

from __future__ import annotations

import time

import torch

CLEARLY_SLOWER = 0.6
"""A share of the other precision's speed that is worth a word: a busy machine measures one and the same product that much
faster or slower."""


def bfloat16_speed() -> float:
    """How many times as fast a product of a language model is in bfloat16 as in float32, on this machine's CPU.

    3 to 4 with instructions for it (AMX, AVX512-BF16), and a small part of 1 without, where it is emulated. Measured in
    some hundredths of a second; each dtype counts by its fastest of three runs.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight = torch.ones(256, 512, dtype=dtype), torch.ones(2048, 512, dtype=dtype)
        runs = []
        for _ in range(4):
            start = time.perf_counter()
            torch.nn.functional.linear(hidden, weight)
            runs.append(time.perf_counter() - start)
        seconds[dtype] = min(runs[1:])
    return seconds[torch.float32] / seconds[torch.bfloat16]
