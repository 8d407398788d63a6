"""Every setting of a recipe as text: its name, its default, and what it does."""

from __future__ import annotations

import textwrap
from dataclasses import MISSING, Field, fields

from mce_llm.finetuning.configuration import GROUPS

_WIDTH = 100
_TITLES = ("Model and adapters", "Data and the run's folder", "Training and the matrix loss")


def settings_list() -> str:
    """The settings by group, in the order in which they are declared; those of this package come before transformers'."""
    parts = []
    for title, group in zip(_TITLES, GROUPS, strict=True):
        own = [item for item in fields(group) if item.init]
        parts.append(title)
        parts += [_entry(item) for item in own]
    return "\n".join(parts)


def _entry(item: Field) -> str:
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    shown = (
        "required"
        if default is MISSING
        else "none"
        if default is None
        else str(getattr(default, "value", default))
    )
    help_text = " ".join(str(item.metadata.get("help", "")).split())
    head = f"  {item.name} ({shown.lower() if isinstance(default, bool) else shown})"
    return "\n".join(
        [head, *textwrap.wrap(help_text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    )
