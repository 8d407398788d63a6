"""`mce-llm compare`: reads evaluations, compares them, prints or writes the outcome.

The statistics are in `mce_llm.eval.comparing.comparison`, the tables in `compare_report`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mce_llm.commands.compare_report import print_comparison
from mce_llm.eval.comparing.comparability import RunPair
from mce_llm.eval.comparing.comparison import compare_runs
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.saved_runs import SavedRun
from mce_llm.running.files import write_json


def read_pairs(folders: Sequence[Path]) -> list[RunPair]:
    """Read evaluations given as A B A2 B2 ….

    Args:
        folders: An even number of them.

    Returns:
        The pairs (A, B).

    Raises:
        EvaluationError: Their number is odd, or one of them holds no finished evaluation.
    """
    if not folders or len(folders) % 2:
        raise EvaluationError(
            f"evaluations are compared in pairs, A B A2 B2 …, got {len(folders)} "
            f"folder{'s' * (len(folders) != 1)}; give a baseline A and a B for each training seed"
        )
    runs = [SavedRun.read(folder) for folder in folders]
    return list(zip(runs[::2], runs[1::2], strict=True))


def run_compare(
    folders: Sequence[Path],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    allow_differences: bool,
    listed: int,
    output: Path | None,
    json_output: bool,
) -> None:
    """Compare evaluations and print the outcome.

    Args:
        folders: A B A2 B2 ….
        confidence: Coverage of the intervals.
        resamples: Drawings of the bootstrap.
        seed: Of its random numbers.
        allow_differences: Compare runs of different settings, with a warning.
        listed: Questions won and lost to print, of each so many.
        output: Write the outcome there as JSON.
        json_output: Print JSON in place of tables.

    Raises:
        EvaluationError: The runs cannot be compared, or the output cannot be written.
        IntervalError: The confidence or the number of resamples is out of range.
    """
    comparison = compare_runs(
        read_pairs(folders),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        allow_differences=allow_differences,
    )
    if output is not None:
        try:
            write_json(output, comparison.to_dict())
        except OSError as error:
            raise EvaluationError(f"cannot write to {output}: {error.strerror or error}") from error
    if json_output:
        print(json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_comparison(comparison, Console(), listed=listed)
