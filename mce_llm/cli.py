"""The `mce-llm` command: a thin face; what the subcommands do lives in modules of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mce_llm import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune language models with matrix cross-entropy, and find out whether it helped.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mce-llm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune language models with matrix cross-entropy, and find out whether it helped."""


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Where data, models and results go.")] = Path(
        "runs/quickstart"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Run stages again that are finished.")] = False,
    steps_scale: Annotated[
        float, typer.Option(min=0.001, help="Multiply the training steps; below 1 for a quick look.")
    ] = 1.0,
) -> None:
    """Train a small Llama on made-up arithmetic, fine-tune it with and without MCE, evaluate both.

    Takes a few minutes on two CPU cores; needs no GPU and no network.
    """
    from mce_llm.quickstart import QuickstartError, run_quickstart

    try:
        run_quickstart(output, fresh=fresh, steps_scale=steps_scale)
    except QuickstartError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"cannot write to {output}: {error.strerror or error}")
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command goes on after the last finished stage", err=True)
        raise typer.Exit(130) from None


@app.command()
def doctor() -> None:
    """Check versions, devices and optional packages, and say what to do about each problem."""
    from mce_llm.doctor import examine, print_findings

    findings = examine()
    print_findings(findings, Console())
    raise typer.Exit(1 if any(finding.level == "error" for finding in findings) else 0)


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
