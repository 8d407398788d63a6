"""What this room tells the person at the terminal: one line, from the main process alone."""

import os


def announce(text: str) -> None:
    """Print a line, unless a launcher made this process one of the others."""
    if is_main_process():
        print(text, flush=True)


def is_main_process() -> bool:
    """Whether this is the process of rank 0, as the launcher said."""
    return int(os.environ.get("RANK", "0")) == 0
