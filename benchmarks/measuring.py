"""Time and peak memory of callables, side by side: what the benchmarks here have in common.

Repeats are interleaved (every callable once, then all again), so that a machine whose speed drifts is unfair to none.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy.stats import t as student

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
# Options of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@dataclass
class Measurement:
    """What was seen of one callable.

    Attributes:
        seconds: Wall time of each repeat, after one that is not counted.
        peak_bytes: The most memory held beyond what was held before the call; None where it cannot be known.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """Median of the repeats in seconds."""
        return statistics.median(self.seconds)


def synchronize(device: torch.device) -> None:
    """Wait for the device; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    reset: Callable[[], None] = lambda: None,
) -> dict[str, Measurement]:
    """Time every callable `repeats` times, interleaved, then measure its peak memory once.

    Args:
        calls: Name → what to run.
        device: Where the tensors are.
        repeats: Timed rounds; one untimed round comes first.
        reset: Called before each run, untimed; drops gradients, say.

    Returns:
        Name → what was seen.
    """
    seen = {name: Measurement() for name in calls}
    for round_number in range(repeats + 1):
        for name, call in calls.items():
            reset()
            progress(f"round {round_number}/{repeats}: {name}")
            synchronize(device)
            begin = time.perf_counter()
            call()
            synchronize(device)
            if round_number:
                seen[name].seconds.append(time.perf_counter() - begin)
    for name, call in calls.items():
        reset()
        progress(f"memory: {name}")
        seen[name].peak_bytes = peak_memory(call, device)
    reset()
    progress("")
    return seen


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `call` holds at most beyond those held before it.

    On CUDA the allocator's count; on Linux the high-water mark of the resident set, which only knows pages that were
    touched; None elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        with _freed_memory_returned():
            Path("/proc/self/clear_refs").write_text("5")  # the mark starts again from here
            before = _resident("VmRSS")
            call()
            return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


@contextmanager
def _freed_memory_returned() -> Iterator[None]:
    """Have glibc give freed memory back at once, so that what is resident is what is in use.

    It otherwise keeps what was freed, by earlier calls and by this one, and how much is a matter of chance.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    library.malloc_trim(0)
    library.mallopt(_MMAP_THRESHOLD, 2**16)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, 2**25)  # where glibc itself arrives after the first large tensors
        library.mallopt(_TRIM_THRESHOLD, 2**26)


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024


@contextmanager
def out_of_memory_as_none() -> Iterator[None]:
    """Let a case that does not fit the GPU be left out instead of ending the run."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()


def progress(text: str) -> None:
    """One line on stderr that replaces itself; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean of a value over training seeds and half the width of its 95 % interval, by Student's t; NaN for one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, float(half)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns, the first left-aligned and the others right-aligned."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [str(row[0]).ljust(widths[0])]
        cells += [str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    """For a table: 12.3."""
    return f"{seconds * 1e3:.1f}"


def mebibytes(count: int | None) -> str:
    """For a table: 123, or a dash where it is not known."""
    return "–" if count is None else f"{count / 2**20:.0f}"


def ratio(value: float | None, base: float | None) -> str:
    """For a table: 1.23, or a dash where either is missing."""
    return "–" if value is None or not base else f"{value / base:.2f}"


def machine(device: torch.device) -> dict[str, object]:
    """What the figures depend on: device, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": device.type,
        "name": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def device_argument(name: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:1` from a command line.

    Raises:
        argparse.ArgumentTypeError: The device is unknown or not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{name!r} is no device; cpu or cuda, say") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("this machine has no CUDA device; use --device cpu")
    return device


def new_file(text: str) -> Path:
    """A file that figures go to, from a command line; its folder is made.

    Raises:
        argparse.ArgumentTypeError: It cannot be written, which after the measurements would be too late to know.
    """
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text}: {error.strerror}") from None
    return path


def positive(text: str) -> int:
    """A count from a command line.

    Raises:
        argparse.ArgumentTypeError: Not a positive integer.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)
