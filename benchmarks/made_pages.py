"""Pages of docs/ with tables that are made from lines beside them: numbers made short, marked regions written anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

LOSSES = ("ce", "token", "marginal", "expected", "label_smoothing", "emo")
"""The order of tables, and of colours in pictures."""
INSIDES = "_insides"
"""Ends the name of a region that `insides_page.py` makes; all others are made by `study_page.py`."""


def rounded(value: Any, digits: int) -> Any:
    """Every float in nested lists and mappings to so many digits behind the point."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, list):
        return [rounded(each, digits) for each in value]
    if isinstance(value, Mapping):
        return {name: rounded(each, digits) for name, each in value.items()}
    return value


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown; a bar in a cell would end it and is written as a slash."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines]


def rewritten(page: str, made: Callable[[str], Sequence[str] | None]) -> str:
    """A page with everything between `<!-- NAME -->` and `<!-- end of NAME -->` made anew, and nothing else.

    Args:
        page: Its text.
        made: Name → lines of Markdown; None for what is another script's.
    """

    def fresh(found: re.Match[str]) -> str:
        name = found["name"]
        if (lines := made(name)) is None:
            return found[0]
        return "\n".join([f"<!-- {name} -->", "", *lines, "", f"<!-- end of {name} -->"])

    return re.sub(r"<!-- (?P<name>\w+) -->\n.*?<!-- end of (?P=name) -->", fresh, page, flags=re.DOTALL)


def write_anew(path: Path, made: Callable[[str], str]) -> None:
    """Write a page anew from its own text, and say whether it is another one now.

    Args:
        path: The page.
        made: Text → text.

    Raises:
        SystemExit: There is no such page.
    """
    if not path.is_file():
        raise SystemExit(f"no page {path}")
    before = path.read_text(encoding="utf-8")
    path.write_text(after := made(before), encoding="utf-8")
    print(f"{path}: {'written' if after != before else 'as it was'}")
