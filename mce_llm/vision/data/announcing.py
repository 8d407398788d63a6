"""Lines for the terminal from code that may run before the processes of a launch have joined.

`mce_llm.running.processes.say` needs them joined; data may be opened without, as in a notebook or a benchmark.
"""

import os


def announce(text: str) -> None:
    """Print a line, unless a launcher made this process one of the others."""
    if is_main_process():
        print(text, flush=True)


def is_main_process() -> bool:
    """Whether this is the process of rank 0, as the launcher said."""
    return int(os.environ.get("RANK", "0")) == 0
