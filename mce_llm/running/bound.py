"""Programs that do not outlive the process that started them, however that one ends.

A program whose parent is killed goes on by itself, unseen, beside the one that is started next. On Linux a process can ask
for a signal when its parent is gone, and keeps that wish across `exec`; elsewhere the program is started as it is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # prctl(2)


def bound_command(command: Sequence[str]) -> list[str]:
    """Return the command that runs another one, which gets SIGTERM when the process that starts it is gone.

    It has to be started by this process, and by its main thread: the signal comes when that thread ends.

    Args:
        command: Its words.
    """
    return [sys.executable, "-m", "mce_llm.running.bound", str(os.getpid()), *command]


def main() -> None:
    """Ask for the signal, and become the program that the command line names."""
    starter, *command = sys.argv[1:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != int(starter):  # it was gone before the line above
            sys.exit(128 + signal.SIGTERM)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror or error}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
