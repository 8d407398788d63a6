"""Reading back an evaluation of either kind: of answers, or of likelihoods."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mce_llm.eval.comparing.labels import run_labels
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.likelihood.saved import SavedLikelihood
from mce_llm.eval.saved_runs import SavedRun

Evaluation = SavedRun | SavedLikelihood


def read_evaluation(path: str | os.PathLike[str]) -> Evaluation:
    """Read a folder that an evaluation wrote, by what its `summary.json` says it is of.

    Args:
        path: The folder of `summary.json`.

    Returns:
        The evaluation.

    Raises:
        EvaluationError: There is no finished evaluation, or its files contradict each other.
    """
    try:
        summary = json.loads((Path(path).expanduser() / "summary.json").read_text(encoding="utf-8"))
        of_likelihoods = isinstance(summary, dict) and summary.get("task") == "likelihood"
    except (OSError, ValueError, RecursionError):
        of_likelihoods = False  # what is wrong with the file is said where it is read whole
    return SavedLikelihood.read(path) if of_likelihoods else SavedRun.read(path)


def check_one_kind(runs: Sequence[Evaluation]) -> None:
    """Refuse evaluations of answers beside evaluations of likelihoods.

    Args:
        runs: All that are compared.

    Raises:
        EvaluationError: There are both; the message says which are which.
    """
    labels = run_labels(runs)
    kinds = [isinstance(run, SavedLikelihood) for run in runs]
    if len(set(kinds)) > 1:
        answers, likelihoods = (
            ", ".join(label for label, kind in zip(labels, kinds, strict=True) if kind is wanted)
            for wanted in (False, True)
        )
        raise EvaluationError(
            f"answers cannot be compared with likelihoods: {answers} are evaluations of answers, {likelihoods} of likelihoods; "
            "give those of one kind"
        )
