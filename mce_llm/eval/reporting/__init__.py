"""The report of evaluations and of the trainings before them: one HTML page that works offline, and its pictures.

`write_report` is what `mce-llm report` calls. Statistics are those of `mce_llm.eval.comparing.comparison`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mce_llm.eval.reporting.collect import read_sources
from mce_llm.eval.reporting.page import make_page
from mce_llm.eval.reporting.sections import Section, arrange
from mce_llm.eval.reporting.writing import check_output, write_page

__all__ = ["WrittenReport", "write_report"]


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written.

    Attributes:
        page: The file to open.
        pictures: How many PNG files are in the same folder.
        sections: What stands in it, a section a task.
    """

    page: Path
    pictures: int
    sections: tuple[Section, ...]


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    pair: bool | None = None,
    allow_differences: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> WrittenReport:
    """Write a report.

    Args:
        runs: Folders of evaluations, or of trainings with their evaluations below; of each task A, B, A2, B2, …
        output: The folder for `index.html` and the pictures.
        pair: Compare (True: or fail), never compare (False), or compare where it is possible (None).
        allow_differences: Compare runs that differ in more than the model, too; the page shows a warning.
        overwrite: Write into a folder that holds something else than a report.
        command: What was typed, for the page to show.

    Returns:
        Where it was written.

    Raises:
        EvaluationError: A run cannot be read, the runs cannot be compared and `pair` asks for it, or the folder may
            not or cannot be written.
    """
    folder = Path(output).expanduser()
    check_output(folder, overwrite=overwrite)
    sources = read_sources(runs)
    sections = arrange(sources, pair=pair, allow_differences=allow_differences)
    page = make_page(sources, sections, command=command, written=datetime.now(UTC))
    return WrittenReport(write_page(page, folder, overwrite=overwrite), len(page.charts), tuple(sections))
