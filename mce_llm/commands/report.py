"""`mce-llm report`: writes the page and says where it is, and what it says. What stands in it is in `mce_llm.eval.reporting`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from mce_llm.commands.compare import Groups
from mce_llm.eval.reporting import write_report
from mce_llm.eval.reporting.likelihood_sections import LikelihoodSection
from mce_llm.eval.reporting.sections import Section
from mce_llm.running.messages import counted
from mce_llm.running.terminal import DataConsole


def run_report(
    runs: Sequence[Path],
    output: Path,
    *,
    groups: Groups | None = None,
    pair: bool | None,
    allow_differences: bool,
    overwrite: bool,
) -> None:
    """Write a report and print where it is.

    Args:
        runs: Folders of evaluations, or of trainings with their evaluations below: A and B, or more with recorded trainings.
        output: The folder for the page and its pictures.
        groups: In place of `runs`, which belongs to which arm.
        pair: Compare (True: or fail), never compare (False), or compare where it is possible (None).
        allow_differences: Compare runs that differ in more than the model, too.
        overwrite: Write into a folder that holds something else than a report.

    Raises:
        EvaluationError: A run cannot be read, the runs cannot be compared and `pair` or `groups` ask for it, or the folder
            may not or cannot be written.
    """
    words = ["mce-llm", "report"]
    if groups is None:
        words += map(str, runs)
        arms: Sequence[tuple[str | None, Sequence[Path]]] = ()
    else:
        runs, arms = groups
        words += ["--baseline", *map(str, runs)]
        for name, folders in arms:
            words += ["--arm", *([name] if name else []), *map(str, folders)]
    words += ["--output", str(output)]
    words += {True: ["--pair"], False: ["--no-pair"], None: []}[pair]
    words += ["--allow-differences"] * allow_differences + ["--overwrite"] * overwrite
    written = write_report(
        runs,
        output,
        arms=arms,
        pair=pair,
        allow_differences=allow_differences,
        overwrite=overwrite,
        command=shlex.join(words),
    )
    console = DataConsole()
    sections: list[Section | LikelihoodSection] = [*written.sections, *written.likelihoods]
    for section in sections:
        for note in section.notes:
            if note.level == "warning":
                console.print(f"{section.title}: WARNING: {note.text}", highlight=False)
        told = f"not compared: {section.not_compared}"
        if section.comparison is not None:
            told = section.comparison.verdict
        console.print(f"{section.title}: {told}", highlight=False)
        if isinstance(section, Section) and section.conclusion is not None:
            console.print(f"{section.data}: {section.conclusion}", highlight=False)
    console.print(
        f"written to {written.page}, with {counted(written.pictures, 'picture')}",
        soft_wrap=True,
        highlight=False,
    )
