"""`accelerate launch` in this process, ending as the script that it launches ends: by its exit code, without a traceback.

accelerate's own command answers Ctrl-C and every failure of the script with a traceback of its own, and with exit code
1 whatever the script's was. The script has said what there is to say. `python -m mce_llm.running.launcher WORDS` is the
same as a program, which other programs start.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# Ends that the script itself explains; see `mce_llm.running.launching`.
_EXPLAINED = (2, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def launch(words: Sequence[str]) -> int:
    """Launch a script and wait for it.

    Args:
        words: What `accelerate launch` takes: its options, the script, and the script's options.

    Returns:
        The script's exit code, of several processes that of the first one to fail; 128 + N where signal N ended it.
    """
    # torch's agent logs every worker that fails with its stack; the worker has said why, or `_ended` says it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    _pass_signals_on()
    arguments = launch_command_parser().parse_args(list(words))
    arguments.quiet = False  # quiet forgets the exit code; loud raises it
    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _ended(error.returncode)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _ended(failure.exitcode, f"process {rank}")
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _pass_signals_on() -> None:
    """Outlive the script: it is told what this process is told, and decides when to end.

    Ctrl-C at a terminal reaches the script by itself. torch's agent, which starts several processes, has handlers of
    its own for SIGINT and SIGTERM.
    """

    def forward(number: int, _: Any) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):  # it has just ended by itself
                child.send_signal(number)

    signal.signal(signal.SIGINT, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, forward)


def _ended(code: int, who: str = "the script") -> int:
    """The exit code of a shell for that of a process, with a line where the process could not say anything itself."""
    if code >= 0:
        return code
    if 128 - code not in _EXPLAINED:
        print(f"error: {who} was ended by {_name(-code)}{_reason(-code)}", file=sys.stderr)
    return 128 - code


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _reason(number: int) -> str:
    return ": usually the memory of the machine was not enough" if number == signal.SIGKILL else ""


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
