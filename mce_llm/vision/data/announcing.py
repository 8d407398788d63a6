"""Lines for the terminal from code that may run before the processes of a launch have joined.

`mce_llm.running.processes.say` needs them joined; data may be opened without, as in a notebook or a benchmark.
"""

import os

from mce_llm.running.visible_text import print_visible

_said: set[str] = set()


def announce(text: str) -> None:
    """Print a line, unless a launcher made this process one of the others."""
    if is_main_process():
        print_visible(text)


def announce_once(text: str) -> None:
    """Print a line that was not printed before: a directory is opened for training and for evaluation, and read alike."""
    if text not in _said:
        _said.add(text)
        announce(text)


def is_main_process() -> bool:
    """Whether this is the process of rank 0, as the launcher said."""
    return int(os.environ.get("RANK", "0")) == 0
