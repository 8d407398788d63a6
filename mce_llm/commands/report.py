"""`mce-llm report`: writes the page and says where it is, and what it says. What stands in it is in `mce_llm.eval.reporting`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mce_llm.eval.reporting import write_report


def run_report(
    runs: Sequence[Path], output: Path, *, pair: bool | None, allow_differences: bool, overwrite: bool
) -> None:
    """Write a report and print where it is.

    Args:
        runs: Folders of evaluations, or of trainings with their evaluations below; of each task A, B, A2, B2, …
        output: The folder for the page and its pictures.
        pair: Compare (True: or fail), never compare (False), or compare where it is possible (None).
        allow_differences: Compare runs that differ in more than the model, too.
        overwrite: Write into a folder that holds something else than a report.

    Raises:
        EvaluationError: A run cannot be read, the runs cannot be compared and `pair` asks for it, or the folder may
            not or cannot be written.
    """
    words = ["mce-llm", "report", *map(str, runs), "--output", str(output)]
    words += {True: ["--pair"], False: ["--no-pair"], None: []}[pair]
    words += ["--allow-differences"] * allow_differences + ["--overwrite"] * overwrite
    written = write_report(
        runs,
        output,
        pair=pair,
        allow_differences=allow_differences,
        overwrite=overwrite,
        command=shlex.join(words),
    )
    console = Console()
    for section in written.sections:
        if section.comparison is not None:
            told = section.comparison.verdict
        else:
            told = f"not compared: {section.not_compared}"
        console.print(f"{section.title}: {told}", markup=False, highlight=False)
    console.print(
        f"written to {written.page}, with {written.pictures} pictures",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
