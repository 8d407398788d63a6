"""Writing a report into its folder: never over something else, and never half of it.

The page replaces an earlier one in one move after all pictures are there. Files of others in the folder stay.
"""

from __future__ import annotations

import re
from pathlib import Path

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.reporting.page import GENERATOR, Page
from mce_llm.running.files import whole_file, write_text

PAGE = "index.html"
_HEAD = 20_000  # bytes of a page in which its head is looked for
_PICTURES = re.compile(r'<meta name="pictures" content="([a-z0-9 .-]*)">')
_PICTURE = re.compile(r"[a-z0-9-]+\.png")


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something else than a report.

    Args:
        folder: Where the report is to go.
        overwrite: Write there all the same.

    Raises:
        EvaluationError: It is a file, cannot be looked into, or holds files and none of them is a report's page.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise EvaluationError(f"the output {folder} is a file; give the name of a folder")
        taken = folder.is_dir() and any(folder.iterdir())
        if taken and not overwrite and _earlier_pictures(folder) is None:
            raise EvaluationError(
                f"{folder} holds files and no report of mce-llm; choose another --output, or use --overwrite to write "
                f"{PAGE} and the pictures there (other files stay)"
            )
    except OSError as error:
        raise EvaluationError(f"cannot look into {folder}: {error.strerror or error}") from error


def write_page(page: Page, folder: Path, *, overwrite: bool) -> Path:
    """Write the page and its pictures; pictures of an earlier report that this one lacks are removed.

    Args:
        page: The report.
        folder: Where it goes; made where it is not there.
        overwrite: Write into a folder that holds something else than a report.

    Returns:
        The page's file.

    Raises:
        EvaluationError: The folder may not or cannot be written.
    """
    check_output(folder, overwrite=overwrite)
    try:
        before = _earlier_pictures(folder) or []
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{chart.name}.png" for chart in page.charts]
        for name, chart in zip(names, page.charts, strict=True):
            with whole_file(folder / name) as beside:
                beside.write_bytes(chart.png)
        write_text(folder / PAGE, page.html)
        for name in set(before) - set(names):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise EvaluationError(f"cannot write to {folder}: {error.strerror or error}") from error
    return folder / PAGE


def _earlier_pictures(folder: Path) -> list[str] | None:
    """The pictures that the report in a folder names, or None where there is no report."""
    page = folder / PAGE
    if not page.is_file():
        return None
    with page.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8", "replace")
    named = _PICTURES.search(head)
    if f'<meta name="generator" content="{GENERATOR}">' not in head or named is None:
        return None
    return [name for name in named[1].split() if _PICTURE.fullmatch(name)]
