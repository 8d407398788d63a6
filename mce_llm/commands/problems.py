"""How a command ends where something is wrong: one line that explains it, and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from mce_llm.errors import MceLlmError
from mce_llm.running.visible_text import visible


@contextmanager
def problems(interrupted: str = "interrupted") -> Iterator[None]:
    """Problems that a message explains as one line and exit code 2; Ctrl-C as one line and 130."""
    try:
        yield
    except MceLlmError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        typer.echo(f"\n{interrupted}", err=True)
        raise typer.Exit(130) from None


def _fail(message: str) -> None:
    typer.echo(f"error: {visible(message)}", err=True)
    raise typer.Exit(2)
