"""Time on a GPU estimated from what a trace counted: the slowest of launching, moving bytes and arithmetic.

Everything here is an estimate: kernels that reach neither the bandwidth nor the rate take longer, launches that
overlap with other work take less, and what the host does while it waits is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from code_places import Place
from device_trace import Launch

_SMALL_MATRIX = 32  # up to this size, libraries decompose a whole batch of matrices at once


@dataclass(frozen=True)
class Machine:
    """What a GPU is assumed to do; by default two thirds of the rates of an H100 and nine tenths of its bandwidth.

    Attributes:
        bandwidth: TB/s of memory.
        bfloat16: TFLOP/s of products in bfloat16 or float16.
        float32: TFLOP/s of products in float32, without TF32.
        float64: TFLOP/s of products in float64.
        launch: µs that a kernel takes at least.
        eigh_call: µs of an eigendecomposition of a batch of small matrices, at least.
        eigh_matrix: µs that each matrix of the batch adds.
    """

    bandwidth: float = 3.0
    bfloat16: float = 650.0
    float32: float = 45.0
    float64: float = 45.0
    launch: float = 3.0
    eigh_call: float = 100.0
    eigh_matrix: float = 0.1

    def seconds(self, launch: Launch) -> float:
        """Estimated time of one launch."""
        cost = launch.cost
        if launch.name == "_linalg_eigh" and launch.shape[-1] <= _SMALL_MATRIX:
            matrices = torch.Size(launch.shape[:-1]).numel()
            return (self.eigh_call + self.eigh_matrix * matrices) * 1e-6
        moving = (cost.read + cost.written) / (self.bandwidth * 1e12)
        return max(self.launch * 1e-6, moving, cost.flops / (self._rate(cost.dtype) * 1e12))

    def _rate(self, dtype: torch.dtype | None) -> float:
        return {torch.float32: self.float32, torch.float64: self.float64}.get(dtype, self.bfloat16)  # type: ignore[arg-type]


def stage_of(place: Place, stages: Mapping[str, str], otherwise: str) -> str:
    """The stage of the innermost function that has one.

    Args:
        place: Where a launch was asked for.
        stages: `module`, `module.Class` or `module.function` → stage.
        otherwise: The stage where no function has one.
    """
    for name in place.calls:
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            if found := stages.get(".".join(parts[:count])):
                return found
    return otherwise


def seconds_by_stage(
    launches: Iterable[Launch], machine: Machine, stages: Mapping[str, str], otherwise: str
) -> dict[str, float]:
    """Estimated time of each stage that has launches."""
    found: dict[str, float] = {}
    for launch in launches:
        stage = stage_of(launch.place, stages, otherwise)
        found[stage] = found.get(stage, 0.0) + machine.seconds(launch)
    return found


def flops_by_dtype(launches: Iterable[Launch]) -> dict[str, int]:
    """Floating-point operations by the dtype that they are done in."""
    found: dict[str, int] = {}
    for launch in launches:
        if launch.cost.dtype is not None:
            name = str(launch.cost.dtype).removeprefix("torch.")
            found[name] = found.get(name, 0) + launch.cost.flops
    return found
