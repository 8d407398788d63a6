"""Waiting for what another process does: for the event itself, with a limit that only a hang reaches."""

import time

HANG = 600
"""Seconds. However busy the machine is, what the tests wait for takes less."""


def wait_until(happened, process=None, log=None, seconds=HANG):
    """Wait until `happened()` is true, and return what it returned.

    Args:
        happened: Asked over and over.
        process: Fails where this one ends before that.
        log: A file to show then.
        seconds: Fails after them.
    """
    until = time.monotonic() + seconds
    while not (seen := happened()):
        said = log.read_text() if log is not None else ""
        assert process is None or process.poll() is None, f"it ended with {process.returncode}: {said}"
        assert time.monotonic() < until, f"waited for {seconds} s: {said}"
        time.sleep(0.01)
    return seen
