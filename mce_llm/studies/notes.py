"""What a reader of a study's tables must know of how the results came about: gaps, and what was not alike in all runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mce_llm.running.messages import counted
from mce_llm.studies.arms import setting_differences
from mce_llm.studies.definition import Study
from mce_llm.studies.results import RunResult

_MOST_NAMED = 6
_UNKNOWN = "unknown"


def notes_of(
    study: Study, results: Mapping[tuple[str, int], RunResult], changes: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Find what must be said under the tables.

    Args:
        study: The study.
        results: What is in its file.
        changes: What was changed on the way, and allowed: entries of definition.json, `when` and `what`.

    Returns:
        Sentences.
    """
    planned = {(arm.name, seed) for arm, seed in study.runs()}
    used = [result for key, result in results.items() if key in planned]
    notes = []
    if missing := [
        f"{arm.name} seed {seed}" for arm, seed in study.runs() if (arm.name, seed) not in results
    ]:
        notes.append(f"not finished: {_listed(missing)}")
    for evaluation in study.evaluations:
        if lacking := [
            f"{arm} seed {seed}"
            for arm, seed in (result.key for result in used if evaluation.name not in result.evaluations)
        ]:
            notes.append(f"without {evaluation.name} as yet: {_listed(lacking)}")
    if left := [result.name for key, result in results.items() if key not in planned]:
        notes.append(f"in the file of results, and not in the study: {_listed(left)}; they are left out")
    for entry in changes:
        notes.append(f"changed on {entry.get('when')}, and allowed: {'; '.join(entry.get('what', []))}")
    for arm in study.arms:
        of_arm = [result for result in used if result.line["arm"] == arm.name]
        for result in of_arm[1:]:
            if other := setting_differences(of_arm[0].line["settings"], result.line["settings"]):
                told = "; ".join(f"{name} {a!r} and {b!r}" for name, (a, b) in other.items())
                notes.append(
                    f"{of_arm[0].name} and {result.name} were trained with different settings: {told}"
                )
    notes += _unlike(
        "were trained with different versions of this package", used, lambda r: _code(r.line["code"])
    )
    packages = dict.fromkeys(name for result in used for name in result.line["versions"])
    for name in packages:
        notes += _unlike(f"{name} is not the same for all runs", used, partial(_version, name))
    notes += _unlike(
        "were launched in different ways",
        used,
        lambda r: " ".join(map(str, r.line["launch"].get("training", []))),
    )
    for evaluation in study.evaluations:
        lines = [(result, result.evaluations.get(evaluation.name)) for result in used]
        measured = [result for result, line in lines if line is not None]
        notes += _unlike(
            f"{evaluation.name} was measured with different versions of this package",
            measured,
            partial(_code_of_evaluation, evaluation.name),
            lambda r: _code(r.line["code"]),
        )
        for name in dict.fromkeys(
            name for result in measured for name in result.evaluations[evaluation.name]["versions"]
        ):
            notes += _unlike(
                f"{evaluation.name} was not measured with the same {name} in all runs",
                measured,
                partial(_version_of_evaluation, evaluation.name, name),
                partial(_version, name),
            )
        notes += _unlike(
            f"{evaluation.name} was measured in different precisions",
            measured,
            partial(_dtype, evaluation.name),
        )
        notes += _unlike(
            f"{evaluation.name} has not the same groups of tokens in all runs, and the tables have those of all",
            measured,
            partial(_groups, evaluation.name),
        )
        notes += [
            f"{evaluation.name} of {result.name}: {remark}"
            for result, line in lines
            if line is not None
            for remark in line.get("remarks", [])
        ]
        questions = next((line["questions"] for _, line in lines if line is not None), None)
        if questions and questions["asked"] > questions["count"]:
            notes.append(
                f"{evaluation.name}: of {counted(questions['asked'], 'question')} {questions['count']:,} are different; copies count "
                "as one, with the mean of their values"
            )
    return notes


def _groups(evaluation: str, result: RunResult) -> str:
    values = result.evaluations[evaluation]["values"]
    calibrated = "" if values.get("calibration") else ", without calibration"
    return ", ".join(values["groups"]) + calibrated if "groups" in values else "answers"


def _dtype(evaluation: str, result: RunResult) -> Any:
    return result.evaluations[evaluation]["hashes"].get("dtype")


def _version(package: str, result: RunResult) -> Any:
    return result.line["versions"].get(package, _UNKNOWN)


def _version_of_evaluation(evaluation: str, package: str, result: RunResult) -> Any:
    return result.evaluations[evaluation]["versions"].get(package, _UNKNOWN)


def _code_of_evaluation(evaluation: str, result: RunResult) -> str:
    return _code(result.evaluations[evaluation]["code"])


def _code(codes: Sequence[Mapping[str, str]]) -> str:
    return (
        " and ".join(f"{code.get('commit', 'source')} {code.get('source', '')}".strip() for code in codes)
        or _UNKNOWN
    )


def _unlike(
    what: str,
    results: Sequence[RunResult],
    of: Callable[[RunResult], Any],
    told: Callable[[RunResult], Any] | None = None,
) -> list[str]:
    """A note where something is not the same for all runs: which has which.

    Args:
        what: What is not the same, as the note begins.
        results: The runs.
        of: Returns what one has.
        told: Returns what another note has said of it already; where that is the same for every run, there is nothing to add.
    """
    if told is not None and all(of(result) == told(result) for result in results):
        return []
    found: dict[str, list[str]] = {}
    for result in results:
        found.setdefault(str(of(result)), []).append(result.name)
    if len(found) < 2:
        return []
    return [f"{what}: {'; '.join(f'{value} ({_listed(names)})' for value, names in found.items())}"]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"
