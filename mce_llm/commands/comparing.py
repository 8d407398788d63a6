"""The command lines of `mce-llm compare` and `report`, which share how runs are put into arms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mce_llm.commands.problems import problems
from mce_llm.commands.run_groups import grouped_runs

_BASELINE = "Evaluations of the baseline, one for each training seed."
_ARM = (
    "Evaluations of what is held against it, one for each seed, and what to call it; may be given several times, each is "
    "compared with the baseline, and corrected for how many there are."
)


def compare(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[A B …]",
            help="Two evaluations, the baseline first; more are put into arms and pairs by what their trainings recorded.",
        ),
    ] = None,
    baseline: Annotated[list[str] | None, typer.Option(metavar="A [A2 …]", help=_BASELINE)] = None,
    arm: Annotated[list[str] | None, typer.Option(metavar="[NAME] B [B2 …]", help=_ARM)] = None,
    primary: Annotated[
        str | None,
        typer.Option(
            metavar="MEASURE",
            help="Of likelihoods: the measure that was named before as the one that decides, such as answer.nats.",
        ),
    ] = None,
    smallest_difference: Annotated[
        float | None,
        typer.Option(
            help="The smallest difference of the primary measure that matters: nats per token, or a share, 0.01 for a point."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Drawings of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    listed: Annotated[
        int,
        typer.Option(
            "--list",
            min=0,
            help="Questions won and lost to show, of each (of likelihoods: those that differ most).",
        ),
    ] = 5,
    allow_differences: Annotated[
        bool, typer.Option("--allow-differences", help="Compare runs of different settings, with a warning.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write the whole outcome there, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, all questions included.")] = False,
) -> None:
    """Compare evaluations on the same questions: paired test, intervals, what could have been found.

    Right answers (eval/gsm8k.py and its like) or likelihoods of reference solutions (eval/likelihood.py), all of one kind.
    Runs must share prompt, data, decoding or scoring, and dtype. With several pairs the interval covers other training seeds too:

        mce-llm compare --baseline runs/ce-*/gsm8k --arm mce runs/mce-*/gsm8k

    Several arms are each compared with the baseline, and corrected for their number.
    """
    from mce_llm.commands.compare import run_compare

    with problems():
        run_compare(
            folders or [],
            groups=grouped_runs(folders, baseline, arm),
            primary=primary,
            smallest_difference=smallest_difference,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            allow_differences=allow_differences,
            listed=listed,
            output=output,
            json_output=as_json,
        )


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN …]",
            help="Evaluations, or trainings with their evaluations below; two are A and B, more are put into arms and "
            "pairs by what their trainings recorded.",
        ),
    ] = None,
    baseline: Annotated[list[str] | None, typer.Option(metavar="A [A2 …]", help=_BASELINE)] = None,
    arm: Annotated[list[str] | None, typer.Option(metavar="[NAME] B [B2 …]", help=_ARM)] = None,
    output: Annotated[Path, typer.Option(help="Folder for index.html and the pictures.")] = Path("report"),
    pair: Annotated[
        bool | None,
        typer.Option(
            "--pair/--no-pair",
            help="Fail unless the runs can be compared, or show them side by side only; by default they are compared "
            "where that is possible.",
        ),
    ] = None,
    allow_differences: Annotated[
        bool, typer.Option("--allow-differences", help="Compare runs of different settings, with a warning.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that holds something else than a report.")
    ] = False,
) -> None:
    """Write a page that shows and compares runs: accuracies, likelihoods, training curves, spectra, all questions and answers.

    One HTML file that works offline, and each picture as PNG beside it. Each data set gets a section of its own.
    """
    from mce_llm.commands.report import run_report

    with problems():
        run_report(
            runs or [],
            output,
            groups=grouped_runs(runs, baseline, arm),
            pair=pair,
            allow_differences=allow_differences,
            overwrite=overwrite,
        )
