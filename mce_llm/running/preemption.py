"""A scheduler takes the machine away: it sends SIGTERM (Slurm's `--signal` often SIGUSR1) some time before it kills.

A handler only notes that. A training loop asks `requested` at each optimizer step and tells all processes, these finish
the step together, save a whole checkpoint and end in `PreemptedError`: the process leaves with exit code 143, since
nothing that comes after training may run on a model that is not trained to its end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from mce_llm.running.bound import PR_SET_PDEATHSIG

EXIT_CODE = 128 + signal.SIGTERM  # whichever signal it was: "not finished, the same command goes on"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A scheduler signals the launcher and its children alike, and the launcher passes it on to them: one request, heard twice.
SAME_REQUEST_SECONDS = 3.0

_noted: tuple[str, float] | None = None  # the signal, and when it came
_waits = False  # whether a signal is to wait for the end of an optimizer step


class PreemptedError(SystemExit):
    """The run was asked to stop and has done so. Left alone it ends the process with exit code 143, silently."""

    def __init__(self, reason: str, checkpoint: Path | None = None) -> None:
        super().__init__(EXIT_CODE)
        self.reason = reason
        self.checkpoint = checkpoint

    def message(self, start: str | None = None) -> str:
        """Say that the run is not finished, and where the same command goes on from.

        Args:
            start: That place, where no checkpoint was written for this stop.
        """
        usual = "the last whole checkpoint, or from the beginning where there is none"
        return (
            f"stopped by {self.reason}; the run is not finished, and the same command goes on from "
            f"{self.checkpoint or start or usual}"
        )

    def __str__(self) -> str:
        return self.message()


@contextmanager
def handle_signals() -> Iterator[None]:
    """Leave on SIGTERM and SIGUSR1, in training after a save; the handlers of before come back at the end.

    Outside `training` a signal raises `PreemptedError` at once. A second one, later than `SAME_REQUEST_SECONDS`, ends the
    process without anything more. Only the main thread can do this; in another one nothing changes.

    Yields:
        Nothing.
    """
    global _noted
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _noted = None
    handler = partial(_handle, os.getpid())
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    _follow_launcher()
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        _noted = None


@contextmanager
def training() -> Iterator[None]:
    """Have signals wait for the end of an optimizer step."""
    global _waits
    _waits = True
    try:
        yield
    finally:
        _waits = False


def requested() -> bool:
    """Whether this process was asked to stop."""
    return _noted is not None


def reason() -> str:
    """What asked for the stop that this process takes part in: a signal's name."""
    return _noted[0] if _noted else "a signal to another process"


def _handle(owner: int, number: int, frame: FrameType | None) -> None:
    global _noted
    if os.getpid() != owner:
        # A child has inherited this: what ends a pool's worker is SIGTERM, and the other signal is not meant for it.
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    name = signal.Signals(number).name
    if _noted is None:
        _noted = (name, time.monotonic())
        if not _waits:
            raise PreemptedError(name)
        os.write(2, f"\n{name}: finishing this optimizer step, then saving and leaving\n".encode())
    elif time.monotonic() - _noted[1] > SAME_REQUEST_SECONDS:
        os.write(2, f"\n{name} again: leaving at once, without another save\n".encode())
        os._exit(EXIT_CODE)


def _follow_launcher() -> None:
    """Get SIGTERM when the launcher is gone.

    accelerate's launcher of a single process does not pass its own SIGTERM on, and torch's cannot when it is killed, no
    more than ours: its ranks would train on, unseen, beside those of the next start.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        launcher = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return
    if any(
        name in launcher
        for name in (b"accelerate", b"torchrun", b"torch.distributed.run", b"mce_llm.running.launcher")
    ):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
