"""What the parts of the GPU report share: sizes, the clock of a part, and cases that may fail or be skipped."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from measuring import synchronize
from torch import Tensor

T = TypeVar("T")


class Skipped(Exception):
    """A part that cannot run here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: A GPU, or the CPU with quick sizes.
        quick: Shrink everything.
        tokens: Positions of the losses.
    """

    device: torch.device
    quick: bool
    tokens: int

    def size(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full


@dataclass
class Clock:
    """The time of one part, and what did not come about in it.

    Attributes:
        seconds: How long it may take.
        skipped: Name of a case → why it was left out.
        faults: Name of a case → what went wrong.
    """

    seconds: float
    skipped: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    _begin: float = field(default_factory=lambda: time.monotonic())

    @property
    def elapsed(self) -> float:
        """Seconds since the part began."""
        return time.monotonic() - self._begin

    @property
    def left(self) -> float:
        """Seconds until its end; negative beyond it."""
        return self.seconds - self.elapsed

    def within(self, names: Iterable[T]) -> Iterator[T]:
        """The names until the time is over; the others count as skipped."""
        for name in names:
            if self.left <= 0:
                self.skipped[str(name)] = f"the {self.seconds:.0f} s of the part were over"
            else:
                yield name

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Let a case fail alone; one that does not fit the GPU's memory is skipped."""
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            self.skipped[name] = "it does not fit the memory of the GPU"
        except Exception:
            self.faults[name] = traceback.format_exc(limit=4)


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median time of a call, after two that do not count."""
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return sorted(times)[repeats // 2]


def problem(
    tokens: int, vocabulary: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (T, d), a head (V, d), both leaves, and labels (T,) of which none is ignored."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, scale: float) -> Tensor:
        drawn = torch.randn(rows, width, generator=generator, device=device, dtype=torch.float32)
        return drawn.mul_(scale).to(dtype).requires_grad_()

    hidden, weight = normal(tokens, 1.0), normal(vocabulary, width**-0.5)
    labels = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    return hidden, weight, labels
