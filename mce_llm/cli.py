"""The `mce-llm` command."""

import typer

app = typer.Typer()
