"""What the runs of a report left behind: their evaluations, and the logs of the trainings that the models came from.

Files are read here and nowhere else in this package. What is not there is noted in words, for the page to say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.likelihood.saved import SavedLikelihood
from mce_llm.eval.saved_evaluations import Evaluation, read_evaluation
from mce_llm.eval.saved_runs import SavedRun
from mce_llm.running.messages import cause

_STATE = "trainer_state.json"
_SPECTRA = "spectra.jsonl"


@dataclass(frozen=True)
class Training:
    """The log of one training.

    Attributes:
        folder: Its `output_dir`, or the checkpoint in it that was evaluated.
        history: `log_history` of `trainer_state.json`.
        spectra: The lines of `spectra.jsonl`.
        missing: What could not be read, in words.
    """

    folder: Path
    history: tuple[Mapping[str, Any], ...]
    spectra: tuple[Mapping[str, Any], ...]
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Training:
        """Read a folder that has a `trainer_state.json`; files that cannot be used are noted in `missing`."""
        missing: list[str] = []
        history = _history(folder / _STATE, missing)
        # A checkpoint's own log ends at its step; the spectra of the whole training are in output_dir.
        home = folder.parent if folder.name.startswith("checkpoint-") else folder
        spectra = _spectra(home / _SPECTRA, missing)
        if home != folder and history:
            last = max(entry["step"] for entry in history)
            spectra = [record for record in spectra if record["step"] <= last]
        return cls(folder, tuple(history), tuple(spectra), tuple(missing))

    def curve(self, name: str) -> list[tuple[int, float]]:
        """The steps at which a quantity was logged, and its values; NaN where it was no number.

        Args:
            name: As in the log, for instance `eval_ce_loss`.

        Returns:
            Points in the order of their steps; where a step was logged twice, the later value.
        """
        points = {
            entry["step"]: float(entry[name])
            for entry in self.history
            if isinstance(entry.get(name), (int, float)) and not isinstance(entry[name], bool)
        }
        return sorted(points.items())


@dataclass(frozen=True)
class Source:
    """One of the RUNs that a report is made of.

    Attributes:
        path: The folder, as it was given.
        evaluations: Those of answers on different data, in the order of their folders.
        likelihoods: The same of likelihoods.
        training: Where the model came from, or None where no such folder is known.
    """

    path: Path
    evaluations: tuple[SavedRun, ...] = ()
    likelihoods: tuple[SavedLikelihood, ...] = ()
    training: Training | None = None

    @property
    def is_evaluation(self) -> bool:
        """Whether the folder itself is an evaluation, and not one that holds evaluations."""
        found: list[Evaluation] = [*self.evaluations, *self.likelihoods]
        return [run.path for run in found] == [self.path]


def read_sources(paths: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """Read the folders of evaluations, or of trainings whose evaluations lie below them.

    Args:
        paths: The folders, one at least.

    Returns:
        One source a folder.

    Raises:
        EvaluationError: A folder holds nothing to report on, files in it contradict each other, or two folders
            hold the same evaluation.
    """
    if not paths:
        raise EvaluationError("there is nothing to report on; give the folder of an evaluation")
    folders = [Path(path).expanduser() for path in paths]
    evaluations = [_evaluations(folder) for folder in folders]
    given: dict[Path, Path] = {}
    for folder, found in zip(folders, evaluations, strict=True):
        for place in {run.path.resolve() for run in found} or {folder.resolve()}:
            if place in given:
                raise EvaluationError(
                    f"{given[place]} and {folder} are one run, {place}; a report takes each run once"
                )
            given[place] = folder
    return [
        Source(
            folder,
            tuple(run for run in found if isinstance(run, SavedRun)),
            tuple(run for run in found if isinstance(run, SavedLikelihood)),
            _training(folder, found),
        )
        for folder, found in zip(folders, evaluations, strict=True)
    ]


def _evaluations(folder: Path) -> tuple[Evaluation, ...]:
    if (folder / "summary.json").is_file():
        return (read_evaluation(folder),)
    found: dict[tuple[str, str], Evaluation] = {}
    for place in sorted(
        file.parent for pattern in ("*", "*/*") for file in folder.glob(f"{pattern}/summary.json")
    ):
        run = read_evaluation(place)
        asked = run.identity["task"], run.identity["data"]
        if asked in found:
            raise EvaluationError(
                f"{folder} holds two evaluations on {run.data_title}, {found[asked].path} and {place}; give the one that "
                "is meant"
            )
        found[asked] = run
    if not found and not (folder / _STATE).is_file():
        SavedRun.read(folder)  # raises, and says what is missing
    return tuple(found.values())


def _training(folder: Path, evaluations: Sequence[Evaluation]) -> Training | None:
    places = [*(run.training_folder for run in evaluations), folder]
    known = next((place for place in places if place is not None and (place / _STATE).is_file()), None)
    return None if known is None else Training.read(known)


def _history(path: Path, missing: list[str]) -> list[Mapping[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        return [entry for entry in entries if isinstance(entry["step"], int)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        missing.append(f"{path} cannot be read, so there are no training curves: {cause(error)}")
        return []


def _spectra(path: Path, missing: list[str]) -> list[Mapping[str, Any]]:
    if not path.is_file():
        missing.append(f"there is no {path}: its training did not record spectra (monitor_steps)")
        return []
    try:
        with path.open(encoding="utf-8") as file:
            lines = list(file)
    except (OSError, UnicodeDecodeError) as error:
        missing.append(f"{path} cannot be read, so there are no spectra: {cause(error)}")
        return []
    records: list[Mapping[str, Any]] = [
        record for line in lines if (record := _spectra_record(line)) is not None
    ]
    if torn := len(lines) - len(records):  # a killed training leaves a torn last line
        missing.append(f"{torn} of {len(lines)} lines of {path} cannot be read and are left out")
    return records


def _spectra_record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        parts = [record[name] for name in ("hidden", "density") if name in record]
        usable = isinstance(record["step"], int) and all(
            0 < len(part["eigenvalues"]) <= part["width"]
            and isinstance(part["effective_rank"], float)
            and all(isinstance(value, int | float) for value in [*part["eigenvalues"], part["rest"]])
            for part in parts
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if usable else None
