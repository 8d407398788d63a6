"""`python -m mce_llm` is the `mce-llm` command."""

from mce_llm.cli import app

app(prog_name="mce-llm")
