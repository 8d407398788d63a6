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
from mce_llm.eval.reporting.likelihood_sections import LikelihoodSection, arrange_likelihoods
from mce_llm.eval.reporting.page import make_page
from mce_llm.eval.reporting.sections import Groups, Section, arrange
from mce_llm.eval.reporting.writing import check_output, write_page

__all__ = ["WrittenReport", "write_report"]


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written.

    Attributes:
        page: The file to open.
        pictures: How many PNG files are in the same folder.
        sections: What of answers stands in it, a section a data set, and arm where there are several.
        likelihoods: What of likelihoods stands in it, a section a data set.
    """

    page: Path
    pictures: int
    sections: tuple[Section, ...]
    likelihoods: tuple[LikelihoodSection, ...] = ()


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    arms: Sequence[tuple[str | None, Sequence[str | os.PathLike[str]]]] = (),
    pair: bool | None = None,
    allow_differences: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> WrittenReport:
    """Write a report.

    Args:
        runs: Folders of evaluations, or of trainings with their evaluations below: A and B, or more, which are arranged by
            what their trainings recorded. With `arms`, those of the baseline.
        arms: (name, folders) of each arm that is held against the baseline, with as many folders as that has.
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
    sources = read_sources([*runs, *(folder for _, folders in arms for folder in folders)])
    groups = _groups(len(runs), arms)
    sections = arrange(sources, groups=groups, pair=pair, allow_differences=allow_differences)
    likelihoods = arrange_likelihoods(sources, groups=groups, pair=pair, allow_differences=allow_differences)
    page = make_page(sources, sections, likelihoods, command=command, written=datetime.now(UTC))
    written = write_page(page, folder, overwrite=overwrite)
    return WrittenReport(written, len(page.charts), tuple(sections), tuple(likelihoods))


def _groups(
    baseline: int, arms: Sequence[tuple[str | None, Sequence[str | os.PathLike[str]]]]
) -> Groups | None:
    """Places of the runs of each group, where runs of the baseline stand first and the arms behind them."""
    if not arms:
        return None
    places, start = [], baseline
    for name, folders in arms:
        places.append((name, range(start, start + len(folders))))
        start += len(folders)
    return range(baseline), places
