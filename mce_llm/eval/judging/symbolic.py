"""Algebra behind a time limit that holds everywhere: in threads, in subprocesses, and while sympy hangs.

An alarm signal could be set by the main thread only, and waits for the end of a long C computation. Here the
comparison runs in a process of its own (`symbolic_worker`), which is started once, answers over a pipe, and is ended
and replaced when it does not answer in time.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from mce_llm.eval.errors import EvaluationError
from mce_llm.running.installation import install_hint

TIME_LIMIT = 10.0
"""Seconds for one comparison; one that takes longer counts as not equal, and is logged."""

_START_LIMIT = 120.0  # importing sympy takes about a second, and longer on a busy file system
_WORKER = Path(__file__).with_name("symbolic_worker.py")

_logger = logging.getLogger(__name__)


class _Worker:
    """A running `symbolic_worker`, its pipes, and the process it belongs to."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        # -P: the worker's folder must not come before the standard library on its path.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the worker
        )
        self.unread = b""
        greeting = self.read(_START_LIMIT)
        if greeting is None or "error" in greeting:
            self.end()
            reason = "it does not start" if greeting is None else greeting["error"]
            raise EvaluationError(
                f"judging MATH answers needs math-verify, which cannot be used ({reason}); "
                f"{install_hint('eval')} brings it"
            )

    def ask(self, gold: str, prediction: str) -> bool | None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([gold, prediction]).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return None
        answer = self.read(TIME_LIMIT)
        return None if answer is None else bool(answer["equal"])

    def read(self, seconds: float) -> dict[str, object] | None:
        """Return the next line of the worker, or None where it ends or the time does."""
        assert self.process.stdout is not None
        pipe, deadline = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self.unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(pipe, 65536) if ready else b""
            if not piece:
                return None
            self.unread += piece
        line, _, self.unread = self.unread.partition(b"\n")
        answer: dict[str, object] = json.loads(line)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not yet written to a worker that is gone
                    pipe.close()


_lock = threading.Lock()
_worker: _Worker | None = None


def check_math_verify() -> None:
    """Start the process that compares, so that a run finds out before it generates whether it can be judged.

    Raises:
        EvaluationError: If math-verify is not installed; the message says how to get it.
    """
    symbolically_equal("x", "x")


def symbolically_equal(gold: str, prediction: str) -> bool:
    """Compare two single expressions or relations with algebra.

    Args:
        gold: The reference, in plain LaTeX.
        prediction: The answer.

    Returns:
        Whether they are equal; False also where they cannot be read, or not be compared in `TIME_LIMIT`.

    Raises:
        EvaluationError: If math-verify is not installed.
    """
    global _worker
    with _lock:
        if _worker is not None and _worker.owner != os.getpid():
            _worker = None  # inherited by a fork: the pipe is the parent's
        if _worker is None:
            _worker = _Worker()
        equal = _worker.ask(gold, prediction)
        if equal is None:
            _worker.end()
            _worker = None
            _logger.warning(
                "%r against %r was not decided within %g s; it counts as not equal",
                prediction,
                gold,
                TIME_LIMIT,
            )
        return bool(equal)


def _end_worker() -> None:
    if _worker is not None and _worker.owner == os.getpid():
        _worker.end()


def _forget_lock() -> None:
    """Give a forked process a lock of its own: another thread of the parent may have held this one."""
    global _lock
    _lock = threading.Lock()


atexit.register(_end_worker)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
