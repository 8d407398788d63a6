"""The worker processes of data loaders: at work until the process that they prepare batches for leaves.

A scheduler that wants its machine back signals the whole process group. The training process finishes its step then and
saves, and needs its workers for that; so they do not listen to such signals before it leaves itself.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

from mce_llm.running.preemption import SIGNALS


def shield_workers(loader: Any) -> Any:
    """Keep the workers of a data loader at work when a scheduler signals the whole process group.

    They end with their parent in any case, also where it leaves in the middle of an epoch.

    Args:
        loader: A `DataLoader` that has not started its workers.

    Returns:
        The same loader.
    """
    if getattr(loader, "num_workers", 0):
        begin = functools.partial(_begin_worker, _leaving(os.getpid()), loader.worker_init_fn)
        # accelerate puts its own loader around the one that starts the workers.
        loader.worker_init_fn = getattr(loader, "base_dataloader", loader).worker_init_fn = begin
    return loader


def _begin_worker(parent_leaves: Any, own: Callable[[int], None] | None, worker: int) -> None:
    """Ignore the signals, but let SIGTERM end this worker once its parent leaves: multiprocessing ends workers by it.

    A worker that ignored SIGTERM altogether would keep a parent that leaves in mid-epoch waiting for ever.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if parent_leaves.value:
            os._exit(0)  # anything else reads as a crash

    for number in SIGNALS:
        signal.signal(number, end if number == signal.SIGTERM else signal.SIG_IGN)
    if own is not None:
        own(worker)


@functools.cache
def _leaving(process: int) -> Any:
    """A flag in memory that this process's workers share, set when it begins to leave."""
    flag = multiprocessing.RawValue(ctypes.c_bool, False)
    # Not atexit, which is not called where this process is itself a child; this is, and before workers are ended.
    Finalize(None, setattr, args=(flag, "value", True), exitpriority=0)
    return flag
