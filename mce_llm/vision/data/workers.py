"""The processes that prepare batches: how many there are, and when they may end.

A scheduler that wants its machine back signals the whole process group. The training process finishes its step then and
saves, and needs its workers for that; so they do not listen to such signals before the training process itself leaves.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

from mce_llm.running.preemption import shield_workers

_MOST_WORKERS = 16


def default_workers() -> int:
    """As many as there are cores that this process may use, shared with the launch's other processes on this machine."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_WORKERS, usable_cores() // local))


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or "max"
        return cores


def begin_worker(parent_leaves: Any, worker: int) -> None:
    """Let SIGTERM end this worker only once its parent leaves: multiprocessing ends what is left of its workers by it.

    A worker that ignored SIGTERM altogether would keep a parent that stops in mid-epoch waiting for ever.

    Args:
        parent_leaves: A flag in memory that both share.
        worker: Its number.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if parent_leaves.value:
            os._exit(0)  # anything else reads as a crash

    signal.signal(signal.SIGTERM, end)


def shielded(loader: Any) -> Any:
    """Keep a loader's workers at work until this process leaves.

    Args:
        loader: A `DataLoader` that has not started its workers.

    Returns:
        The same loader.
    """
    if loader.num_workers:
        loader.worker_init_fn = functools.partial(begin_worker, _leaving(os.getpid()))
    return shield_workers(loader)  # calls what was set here after its own


@functools.cache
def _leaving(process: int) -> Any:
    """A flag in memory that this process's workers share, set when it begins to leave."""
    flag = multiprocessing.RawValue(ctypes.c_bool, False)
    # Not atexit, which is not called where this process is itself a child; this is, and before workers are ended.
    Finalize(None, setattr, args=(flag, "value", True), exitpriority=0)
    return flag
