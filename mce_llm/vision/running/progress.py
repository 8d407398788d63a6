"""Progress bars: on the main process, and only where someone can see them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from accelerate import PartialState
from tqdm import tqdm


def progress_bar(
    over: Iterable[Any] | int, description: str, *, initial: int = 0, total: int | None = None
) -> Any:
    """A tqdm bar over an iterable, or one to be moved by hand (`update`) up to a number.

    Args:
        over: What to go through, or how many steps there are.
        description: What stands before the bar.
        initial: Steps that were done before.
        total: How many there are, where the iterable does not know.

    Returns:
        A tqdm object; silent in all processes but the main one, and where standard error is not a terminal.
    """
    silent = not PartialState().is_main_process or not sys.stderr.isatty()
    options: dict[str, Any] = {
        "desc": description,
        "initial": initial,
        "disable": silent,
        "dynamic_ncols": True,
        "leave": False,
    }
    if isinstance(over, int):
        return tqdm(total=over, **options)
    return tqdm(over, total=total, **options)
