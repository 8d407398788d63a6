"""The file of a study's results: a line a finished run, written whole, checked when it is read.

The tables of a study are made of this file alone, so a line holds everything that they need: which run it is of, with
what it was made, and what every question contributed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.running.files import write_text
from mce_llm.running.messages import cause, raise_all
from mce_llm.studies.errors import StudyError
from mce_llm.studies.line_form import wrong_fields

RESULTS = "results.jsonl"
_SAME = ("task", "prompt", "data", "decoding", "scoring")
"""Hashes of an evaluation that all runs must share."""
_SAME_IN_A_SEED = "dtype"
"""What those of one seed must share: arms are held against each other seed by seed."""


@dataclass(frozen=True)
class RunResult:
    """What is known of a finished run: its line, or its lines where evaluations were added later.

    Attributes:
        line: The first line.
        evaluations: Name → what was measured, of all its lines.
        number: Of the first line in the file, from 1.
    """

    line: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    number: int

    @property
    def key(self) -> tuple[str, int]:
        """Arm and seed."""
        return self.line["arm"], self.line["seed"]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.line['arm']}, seed {self.line['seed']}"


class Results:
    """The results of a study.

    Args:
        folder: The study's output folder.
        study: The study's name.
    """

    def __init__(self, folder: Path, study: str) -> None:
        self.path, self.study = folder / RESULTS, study

    def read(self) -> dict[tuple[str, int], RunResult]:
        """Read and check all lines.

        Returns:
            (arm, seed) → its results.

        Raises:
            StudyError: Lines that cannot be read, are of another study, are there twice or contradict each other; all
                problems at once.
        """
        found, problems = self._checked(self._lines())
        raise_all(problems, StudyError)
        return found

    def _checked(self, lines: Sequence[str]) -> tuple[dict[tuple[str, int], RunResult], list[str]]:
        """What lines say, and what is wrong with them."""
        found: dict[tuple[str, int], RunResult] = {}
        problems: list[str] = []
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except (ValueError, RecursionError) as error:
                problems.append(
                    f"{self.path}, line {number} is no JSON ({cause(error)}); restore it, or take it out"
                )
                continue
            if wrong := list(wrong_fields(line, self.study)):
                problems += [f"{self.path}, line {number}: {problem}" for problem in wrong]
                continue
            key = line["arm"], line["seed"]
            if key not in found:
                found[key] = RunResult(line, dict(line["evaluations"]), number)
                continue
            first = found[key]
            twice = sorted(set(first.evaluations) & set(line["evaluations"]))
            if (
                twice
                or line["training"] != first.line["training"]
                or line["settings"] != first.line["settings"]
            ):
                told = f"evaluations {', '.join(twice)}" if twice else "another training"
                problems.append(
                    f"{self.path}: lines {first.number} and {number} are both of {first.name} ({told}); take one of them out"
                )
                continue
            found[key] = RunResult(first.line, {**first.evaluations, **line["evaluations"]}, first.number)
        problems += self._contradictions(list(found.values()))
        return found, problems

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line; whenever the process is killed, the file is as before or has the whole line.

        Args:
            line: As `collecting` makes it.

        Raises:
            StudyError: The file could not be read again with this line, which is not added; or the file system refuses.
        """
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        lines = [each for each in self._lines() if each.strip()] + [text]
        _, problems = self._checked(lines)
        if problems:
            raise StudyError(
                f"the results of {line.get('arm')}, seed {line.get('seed')} cannot be kept as line {len(lines)} of {self.path}"
                f"{''.join(f'{chr(10)}- {problem}' for problem in problems)}"
            )
        try:
            write_text(self.path, "".join(f"{each}\n" for each in lines))
        except OSError as error:
            raise StudyError(f"cannot write to {self.path}: {error.strerror or error}") from error

    def _lines(self) -> list[str]:
        try:
            text = self.path.read_text(encoding="utf-8-sig")  # some editors mark it
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"{self.path} cannot be read: {error}") from error
        return text.split("\n")

    def _contradictions(self, results: Sequence[RunResult]) -> list[str]:
        """What all runs must share and do not; and runs that are copies of others."""
        problems = []
        first: dict[str, tuple[RunResult, Mapping[str, Any]]] = {}
        of_seed: dict[tuple[str, int], tuple[RunResult, Mapping[str, Any]]] = {}
        models: dict[tuple[str, str], RunResult] = {}
        for result in results:
            for name, evaluation in result.evaluations.items():
                before, reference = first.setdefault(name, (result, evaluation))
                other = [part for part in _SAME if _differ(evaluation, reference, part)]
                if evaluation["questions"] != reference["questions"]:
                    other.append("questions")
                if not other:
                    before, reference = of_seed.setdefault((name, result.key[1]), (result, evaluation))
                    if _differ(evaluation, reference, _SAME_IN_A_SEED):
                        other.append(_SAME_IN_A_SEED)
                if other:
                    problems.append(
                        f"{self.path}, lines {before.number} and {result.number}: {name} of {before.name} and of {result.name} "
                        f"were not measured alike ({', '.join(other)}); evaluate one of them again: take its line out and "
                        "remove the evaluation's folder"
                    )
                model = evaluation["hashes"].get("model")
                twin = models.setdefault((name, str(model)), result)
                if twin is not result:
                    problems.append(
                        f"{self.path}, lines {twin.number} and {result.number}: {twin.name} and {result.name} are one and the "
                        "same model by its weights: one line or folder is a copy, or what they differ in (the seed, or the settings of "
                        "the arms) changes nothing in the training"
                    )
        return problems


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], part: str) -> bool:
    return bool(one["hashes"].get(part) != other["hashes"].get(part))
