"""How a script begins and ends: signals, one message for what a user can mend, exit codes.

=========  =================================================================
exit code  what happened
=========  =================================================================
0          done
2          a problem that its message explains; nothing was finished
130        Ctrl-C
143        SIGTERM or SIGUSR1: not finished, the same command goes on
=========  =================================================================

Everything else is a defect of this package, and keeps its traceback (exit code 1).
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable

import torch
from safetensors import SafetensorError

from mce_llm.errors import MceLlmError
from mce_llm.running.folder import release_folders
from mce_llm.running.messages import cause
from mce_llm.running.noise import silence_known_noise
from mce_llm.running.preemption import EXIT_CODE, PreemptedError, handle_signals
from mce_llm.running.processes import leave_processes
from mce_llm.running.visible_text import print_visible
from mce_llm.running.workers import workers_end_here

# How the writers of weights (safetensors) and of optimizer states (torch) say it.
_DISK_FULL = ("No space left on device", "file write failed", "unexpected pos")
# How torch says that a worker did not end by itself.
_WORKER_KILLED = re.compile(r"DataLoader worker \(pid(\(s\))?.*(killed by signal|exited unexpectedly$)")
# A launcher ends all processes as soon as one has left; what is said after that many seconds, no other one has said.
_SECONDS_FOR_THE_FIRST = 3.0


def run_script(
    main: Callable[[list[str] | None], None],
    argv: list[str] | None = None,
    *,
    goes_on_from: str | Callable[[], str] | None = None,
    needs_less_memory: str = "lower batch_size, or use more processes or mixed_precision: bf16",
    fewer_workers: str = "num_workers",
) -> int:
    """Run a script's `main`, with problems as one message instead of a traceback.

    Of several processes that meet the same problem the first one says it; one that alone meets it says it a little later,
    if the launcher has not ended it by then. One that is known to be met by all (`processes.shared`) is said by the first.

    Args:
        main: Takes the command line, None for that of the process.
        argv: What to give it.
        goes_on_from: Where the same command goes on from, for messages about interruptions; by default the last checkpoint.
        needs_less_memory: What to change where the memory of a device is not enough.
        fewer_workers: The setting that says how many processes prepare batches.

    Returns:
        The exit code: 0, 2 for a problem that the message explains, 130 after Ctrl-C, 143 after SIGTERM or SIGUSR1.
    """
    said_by_first = False

    def start() -> str:
        return goes_on_from() if callable(goes_on_from) else goes_on_from or "the last checkpoint"

    silence_known_noise()
    try:
        with handle_signals(), workers_end_here():
            main(argv)
    except PreemptedError as stop:
        if stop.checkpoint is not None:  # all the others have come this far too
            leave_processes()
        if _is_first():
            print_visible(stop.message(start() if goes_on_from else None), sys.stderr)
        return EXIT_CODE
    except MceLlmError as error:
        message, said_by_first = str(error), error.on_every_process
    except torch.OutOfMemoryError as error:
        message = f"out of memory: {cause(error)}; {needs_less_memory}"
    except KeyboardInterrupt:
        if _is_first():
            print_visible(f"\ninterrupted; the same command goes on from {start()}", sys.stderr)
        return 130
    except (OSError, RuntimeError, SafetensorError) as error:
        if any(sign in str(error) for sign in _DISK_FULL):
            message = f"the disk is full: {cause(error)}; with space, the same command goes on from {start()}"
        elif _WORKER_KILLED.search(str(error)):
            message = (
                f"a process that prepares batches was killed ({cause(error)}), most often because the machine's memory was "
                f"used up; with fewer of them ({fewer_workers}), the same command goes on from {start()}"
            )
        else:
            raise
    else:
        leave_processes()
        return 0
    finally:
        release_folders()
    if not _is_first():
        time.sleep(_SECONDS_FOR_THE_FIRST)
        if said_by_first:
            return 2
    print_visible(f"error: {message}", sys.stderr)
    return 2


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"
