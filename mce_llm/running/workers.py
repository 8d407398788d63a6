"""The worker processes of data loaders: at work until the process that they prepare batches for leaves, and no longer.

A scheduler that wants its machine back signals every process of a job. The training process finishes its step then and
saves, and needs its workers for that; so they heed no signal but the SIGTERM of the process that owns them, which is how
torch and multiprocessing end them. A thread of the worker waits for it, and sees whether the owner is still there: a
handler would have to wait for the main thread, which may be stuck in a decoder or behind a lock that it was forked with.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import (
    BaseContext,
    ForkContext,
    ForkProcess,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mce_llm.running.preemption import SIGNALS

_UNHEARD = (*SIGNALS, signal.SIGINT)  # a terminal's Ctrl-C goes to the whole group too
_OWNER_IS_LOOKED_FOR = 1.0  # seconds between two looks
_SECONDS_TO_END = 5.0


def shield_workers(loader: Any) -> Any:
    """Keep the workers of a data loader at work when all processes of a job are signalled, and end them with their owner.

    They end when the owner says so, or within a second or so after it is gone, whatever it ended by. A system that cannot
    say who sent a signal (macOS) leaves workers as torch makes them.

    Args:
        loader: A `DataLoader` that has not started its workers.

    Returns:
        The same loader.
    """
    # accelerate puts its own loader around the one that starts the workers.
    own = getattr(loader, "base_dataloader", loader)
    if getattr(own, "num_workers", 0) and hasattr(signal, "sigtimedwait"):
        method = (own.multiprocessing_context or multiprocessing.get_context()).get_start_method()
        own.multiprocessing_context = _CONTEXTS[method]()
    return loader


@contextmanager
def workers_end_here() -> Iterator[None]:
    """End the workers that were started in a block when it is left, however that comes about.

    What an error leaves behind holds on to the loader's iterator, which ends its workers when Python's collector finds it:
    as late as while the interpreter shuts down, and then one after the other, waiting 5 s for each.

    Yields:
        Nothing.
    """
    before = set(_started)
    try:
        yield
    finally:
        if workers := set(_started) - before:
            _end(workers)


def _end(workers: set[_Worker]) -> None:
    # torch's own way asks each to leave, by locks and pipes that one which was killed may have left in any state.
    for each in gc.get_objects():
        if type(each) is _MultiProcessingDataLoaderIter and not workers.isdisjoint(each._workers):
            each._shutdown = True
    # torch raises in the main thread where a worker does not end by itself, and now that is as it should be.
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    try:
        alive = [worker for worker in workers if worker.is_alive()]
        for worker in alive:
            worker.terminate()
        for worker in alive:
            worker.join(_SECONDS_TO_END)
            if worker.is_alive():  # stopped, or in native code that lets no other thread run
                worker.kill()
                worker.join()
    finally:
        if main:
            signal.signal(signal.SIGCHLD, handler)


class _Worker(BaseProcess):
    """A process that begins with the signals blocked, so that there is no moment in which one could end it."""

    _owner = 0

    def start(self) -> None:
        """Start the process."""
        self._owner = os.getpid()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _UNHEARD)
        try:
            super().start()
            _started.add(self)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        """Prepare batches, as torch has it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _UNHEARD)  # a fork server may have begun without
        threading.Thread(target=_leave_with, args=(self._owner,), daemon=True, name="owner").start()
        super().run()


_started: WeakSet[_Worker] = WeakSet()


class _Forked(_Worker, ForkProcess):
    pass


class _Spawned(_Worker, SpawnProcess):
    pass


class _Served(_Worker, ForkServerProcess):
    pass


class _Forking(ForkContext):
    Process = _Forked


class _Spawning(SpawnContext):
    Process = _Spawned


class _Serving(ForkServerContext):
    Process = _Served


_CONTEXTS: dict[str, type[BaseContext]] = {"fork": _Forking, "spawn": _Spawning, "forkserver": _Serving}


def _leave_with(owner: int) -> None:
    """End this process on SIGTERM from its owner, or once that is gone."""
    child = os.getppid() == owner  # not where a fork server is in between
    while os.getppid() == owner if child else _runs(owner):
        heard = signal.sigtimedwait(_UNHEARD, _OWNER_IS_LOOKED_FOR)
        if heard is not None and (heard.si_signo, heard.si_pid) == (signal.SIGTERM, owner):
            break
    os._exit(0)  # anything else reads as a crash


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
