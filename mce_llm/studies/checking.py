"""Everything that can be wrong with a study, looked at before anything starts, and said at once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.data.files import looks_local
from mce_llm.errors import MceLlmError
from mce_llm.running.files import write_json
from mce_llm.running.folder import check_place
from mce_llm.running.launch_options import launcher_options, misplaced_values
from mce_llm.running.messages import cause, nearest_hint, raise_all
from mce_llm.studies.arms import check_arms, parsed_arms, setting_differences
from mce_llm.studies.declared import declared, declared_otherwise
from mce_llm.studies.definition import Preparation, Study
from mce_llm.studies.errors import StudyError
from mce_llm.studies.evaluators import EVALUATORS
from mce_llm.studies.parts import EVERYTHING, Part
from mce_llm.studies.planning import TRAINING, other_options
from mce_llm.studies.provenance import code_facts, content_of, version_facts
from mce_llm.studies.reading import Reading
from mce_llm.studies.results import RESULTS, Results, RunResult
from mce_llm.studies.slots import Slot

DEFINITION = "definition.json"
_FORMAT = 1
_FILES = ("data", "shots")  # options of evaluations that may be local files
_DECODING = ("max_new_tokens", "temperature", "num_samples", "backend")


@dataclass(frozen=True)
class Checked:
    """A study that may be run.

    Attributes:
        study: The study.
        shaping: Arm → the settings that shape what it trains.
        options: Evaluation → the options that its results depend on, local files by their content.
        launch: `training` and `evaluation`: options of `accelerate launch`.
        results: What is in its file.
        changed: What was changed since the study began, where that was allowed.
    """

    study: Study
    shaping: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Mapping[str, Any]]
    launch: Mapping[str, list[str]]
    results: Mapping[tuple[str, int], RunResult]
    changed: tuple[str, ...] = ()


def checked(
    reading: Reading,
    slot: Slot,
    *,
    part: Part = EVERYTHING,
    allow_changes: bool = False,
    starts: bool = True,
) -> Checked:
    """Look at a study with all its recipes, data and earlier results.

    Args:
        reading: The study file.
        slot: The share of the machine that a run gets.
        part: What of it is to be run now.
        allow_changes: Go on although recipes, settings or data have changed.
        starts: Whether runs are to be started: then this machine must be able to train, and all data are read.

    Returns:
        The study.

    Raises:
        StudyError: With all that is wrong.
    """
    study, problems = reading.study, list(reading.problems)
    problems += part.problems(study)
    launch = _launch(study, slot, problems)
    prepared = not pending_preparations(study)
    processes = slot.processes(launch[TRAINING])
    arms = parsed_arms(study, processes, problems, elsewhere=not starts, inputs=prepared)
    problems += check_arms(arms, study.baseline.name if reading.has_baseline else None)
    parsed, options = _options(study, problems, read=prepared, from_hub=starts)
    try:
        check_place(study.output, error=StudyError)
    except StudyError as error:
        problems.append(str(error))
    results, changed = _earlier(
        study, {arm.arm.name: arm.shaping for arm in arms}, options, problems, prepared
    )
    problems += _of_other_options(study, parsed, results)
    if allow_changes:
        problems += _never_alike(study, part, options, results)
    if changed and not allow_changes:
        told = "".join(f"\n    {change}" for change in changed)
        problems.append(
            f"{study.output} was begun with other settings or data:{told}\n  bring them back, choose another --output, or go "
            "on with --allow_changes, which is recorded and said under the tables"
        )
    raise_all(problems, StudyError)
    shaping = {arm.arm.name: arm.shaping for arm in arms}
    return Checked(study, shaping, options, launch, results, tuple(changed))


def pending_preparations(study: Study) -> list[Preparation]:
    """The commands that make files before the first run, and have not been run to their end."""
    return [step for step in study.prepare if not is_prepared(study, step)]


def is_prepared(study: Study, step: Preparation) -> bool:
    """Whether a command of `prepare` was run to its end, and its file is there."""
    try:
        done = json.loads(_prepared_file(study).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(done, list) and list(step.given) in done and step.makes.exists()


def mark_prepared(study: Study, step: Preparation) -> None:
    """Note that a command of `prepare` was run to its end."""
    path = _prepared_file(study)
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        done = []
    write_json(path, [*(done if isinstance(done, list) else []), list(step.given)])


def _prepared_file(study: Study) -> Path:
    return study.output / "prepared.json"


def _launch(study: Study, slot: Slot, problems: list[str]) -> dict[str, list[str]]:
    """The launcher's options for trainings and evaluations, as they are given to it."""
    known = launcher_options()
    found: dict[str, list[str]] = {}
    told = set()
    for stage, words in study.launch.items():
        names = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
        wrong = [
            f"launch: {stage}: accelerate launch has no option {name!r}{nearest_hint(name, known)}"
            for name in names
            if name.replace("-", "_") not in known
        ]
        if not wrong:
            wrong += [f"launch: {stage}: {problem}" for problem in misplaced_values(words)]
        try:
            found[stage] = [] if wrong else slot.launch_words(words)
        except MceLlmError as error:
            wrong.append(str(error))
            found[stage] = []
        problems += [problem for problem in wrong if problem not in told]
        told |= set(wrong)
    return found


def _options(
    study: Study, problems: list[str], *, read: bool, from_hub: bool
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The parsed options of each evaluation, and those that its results depend on; its questions are read once."""
    parsed: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for evaluation in study.evaluations:
        evaluator = EVALUATORS[evaluation.script]
        where = f"evaluation {evaluation.name}"
        try:
            options = evaluator.parse(evaluation.settings)
            if read and (from_hub or looks_local(options.data)):
                primary = study.primary
                measure = primary.measure if primary.evaluation == evaluation.name else None
                problems += [f"{where}: {lack}" for lack in evaluator.lacks(evaluator.load(options), measure)]
        except MceLlmError as error:
            problems.append(f"{where}: {error}")
            continue
        parsed[evaluation.name] = options
        recorded = options.recorded()
        del recorded["model"]
        for name in _FILES:
            place = recorded.get(name)
            if read and isinstance(place, str) and (content := content_of(place)) is not None:
                recorded[name] = content
        found[evaluation.name] = recorded
    return parsed, found


def _of_other_options(
    study: Study, parsed: Mapping[str, Any], results: Mapping[tuple[str, int], RunResult]
) -> list[str]:
    """Folders of evaluations with other options than now; those whose results are in the file are not run again."""
    return [
        f"evaluation {name}: {folder} holds results of other options ({'; '.join(other)}); remove it, or give the "
        "evaluation another name"
        for name, options in parsed.items()
        for arm, seed in study.runs()
        if (result := results.get((arm.name, seed))) is None or name not in result.evaluations
        if (other := other_options(folder := study.folder(arm.name, seed) / name, options))
    ]


def _never_alike(
    study: Study,
    part: Part,
    options: Mapping[str, Mapping[str, Any]],
    results: Mapping[tuple[str, int], RunResult],
) -> list[str]:
    """Changes that may be allowed, and with which what is measured now could not be kept beside what is there.

    Others show when an evaluation has begun: a prompt by another name, or data elsewhere, may be the same.
    """
    seeds: dict[str, set[int]] = {}
    for run in part.runs(study, results):
        for stage in run.stages[1:]:
            seeds.setdefault(stage.name, set()).add(run.seed)
    found: dict[tuple[str, str], str] = {}
    for result in results.values():
        for name, evaluation in result.evaluations.items():
            for option, now in options.get(name, {}).items() if name in seeds else ():
                earlier = evaluation["options"].get(option, now)
                if not _surely_other(option, earlier, now):
                    continue
                if option == "dtype" and result.key[1] not in seeds[name]:
                    continue
                found.setdefault(
                    (name, option),
                    f"evaluation {name}: {option} {earlier!r} → {now!r} cannot be allowed: {result.name} was measured with "
                    f"{earlier!r}, and could not be held against what is measured now; bring it back, or give the evaluation "
                    "another name",
                )
    return list(found.values())


def _surely_other(option: str, earlier: Any, now: Any) -> bool:
    """Whether results with two values of an option are never alike."""
    if option == "dtype":
        return earlier != now and "auto" not in (earlier, now)
    if option == "data":
        return earlier != now and all(str(value).startswith("content ") for value in (earlier, now))
    return option in _DECODING and earlier != now


def _earlier(
    study: Study,
    shaping: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Mapping[str, Any]],
    problems: list[str],
    prepared: bool,
) -> tuple[dict[tuple[str, int], RunResult], list[str]]:
    """The results that are there, and what has changed since they were made, or since the study began."""
    before = _definition(study, problems)
    if before is not None and before.get("study") != study.name:
        problems.append(
            f"{study.output} is the folder of another study, {before.get('study')!r}; choose another --output for "
            f"{study.name!r}"
        )
        return {}, []
    try:
        results = Results(study.output, study.name).read()
    except StudyError as error:
        problems.append(str(error))
        return {}, []
    if not prepared:
        return results, []
    changes: list[str] = []
    scripts = {evaluation.name: evaluation.script for evaluation in study.evaluations}
    if before is not None:
        evaluations = before.get("evaluations", {})
        changes += [
            f"evaluation {name}: script {found['script']!r} → {scripts[name]!r}"
            for name, found in evaluations.items()
            if scripts.get(name, found["script"]) != found["script"]
        ]
        changes += _changes(before.get("arms", {}), evaluations, shaping, options, "")
        changes += declared_otherwise(before, study)
    for result in results.values():
        problems += [
            f"evaluation {name}: that of {result.name} in {study.output / RESULTS} was made by the script {found['script']}, "
            f"not by {scripts[name]}; give the evaluation another name, or choose another --output"
            for name, found in result.evaluations.items()
            if scripts.get(name, found["script"]) != found["script"]
        ]
        changes += declared_otherwise(result.line.get("declared", {}), study)
        arm = result.line["arm"]
        measured = {
            name: {"script": found["script"], "options": found["options"]}
            for name, found in result.evaluations.items()
        }
        changes += _changes({arm: result.line["settings"]}, measured, shaping, options, f" ({result.name})")
    allowed = {text for entry in (before or {}).get("changes", []) for text in entry["what"]}
    return results, [change for change in dict.fromkeys(changes) if change not in allowed]


def _changes(
    arms: Mapping[str, Mapping[str, Any]],
    evaluations: Mapping[str, Mapping[str, Any]],
    shaping: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Mapping[str, Any]],
    where: str,
) -> list[str]:
    """What is other now, in words."""
    told = [
        f"arm {arm}{where}: {name} {a!r} → {b!r}"
        for arm, settings in arms.items()
        if arm in shaping
        for name, (a, b) in setting_differences(settings, shaping[arm]).items()
    ]
    for name, evaluation in evaluations.items():
        if name in options:
            earlier, now = evaluation["options"], options[name]
            told += [
                f"evaluation {name}{where}: {option} {earlier.get(option)!r} → {now.get(option)!r}"
                for option in dict.fromkeys([*earlier, *now])
                if earlier.get(option) != now.get(option)
            ]
    return told


def _definition(study: Study, problems: list[str]) -> dict[str, Any] | None:
    path = study.output / DEFINITION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path} cannot be read: {cause(error)}; restore it, or choose another --output")
        return None
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not _well_formed(content):
        problems.append(f"{path} is not what a study of this version has begun with; choose another --output")
        return None
    return content


def _well_formed(content: Mapping[str, Any]) -> bool:
    """Whether a definition has the parts that are looked at, as far as they are there."""
    arms, evaluations, changes = (
        content.get(name, kind()) for name, kind in (("arms", dict), ("evaluations", dict), ("changes", list))
    )
    if not (isinstance(arms, dict) and isinstance(evaluations, dict) and isinstance(changes, list)):
        return False
    return (
        all(isinstance(settings, dict) for settings in arms.values())
        and all(
            isinstance(item, dict)
            and isinstance(item.get("script"), str)
            and isinstance(item.get("options"), dict)
            for item in evaluations.values()
        )
        and all(isinstance(entry, dict) and isinstance(entry.get("what"), list) for entry in changes)
    )


def write_definition(found: Checked) -> None:
    """Leave what the study is, for later starts and for readers; changes that were allowed are added to those of before.

    Args:
        found: The study.
    """
    study = found.study
    path = study.output / DEFINITION
    before = _definition(study, []) or {}
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    changed = list(found.changed)
    changes = [*before.get("changes", []), *([{"when": now, "what": changed}] if changed else [])]
    write_json(
        path,
        {
            "format": _FORMAT,
            "study": study.name,
            "file": str(study.file),
            "begun": before.get("begun", now),
            "seeds": {arm.name: list(arm.seeds) for arm in study.arms},
            **declared(study),
            "arms": {name: dict(settings) for name, settings in found.shaping.items()},
            "evaluations": {
                item.name: {"script": item.script, "options": dict(found.options[item.name])}
                for item in study.evaluations
            },
            "code": code_facts(),
            "versions": version_facts(),
            "changes": changes,
        },
    )
