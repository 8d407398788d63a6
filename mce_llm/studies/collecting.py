"""The line of results.jsonl for a run: made from the folders that its training and its evaluations left."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mce_llm.running.installation import installed_versions
from mce_llm.running.messages import cause
from mce_llm.studies.child import Launches
from mce_llm.studies.declared import declared
from mce_llm.studies.definition import Study
from mce_llm.studies.errors import StudyError
from mce_llm.studies.evaluators import EVALUATORS
from mce_llm.studies.line_form import FORMAT
from mce_llm.studies.planning import TRAINING, Run
from mce_llm.studies.provenance import PACKAGES

_LAST_OF = (
    "loss",
    "ce_loss",
    "mce_loss",
    "grad_norm",
    "learning_rate",
    "eval_loss",
    "eval_ce_loss",
    "eval_mce_loss",
)


def log_of(study: Study, run: Run, stage: str) -> Path:
    """The file with everything that a stage of a run has printed."""
    return study.output / "logs" / f"seed{run.seed}" / run.arm.name / f"{stage}.log"


def launches_of(study: Study, run: Run) -> Launches:
    """The journal of a run's launches."""
    return Launches(study.output / "logs" / f"seed{run.seed}" / run.arm.name / "launches.jsonl")


def signs_of(study: Study, run: Run, stage: str) -> list[Path]:
    """What tells until when a stage of a run was at work: its log, and the checkpoints of a training, which may log rarely."""
    saved = study.folder(run.arm.name, run.seed).glob("checkpoint-*") if stage == TRAINING else ()
    return [log_of(study, run, stage), *saved]


def line_of(
    study: Study,
    run: Run,
    shaping: Mapping[str, Any],
    options: Mapping[str, Mapping[str, Any]],
    launch: Mapping[str, list[str]],
) -> dict[str, Any]:
    """Read what a finished run left.

    Args:
        study: The study.
        run: The run; all its stages are done.
        shaping: The settings that shape what it trained, of `arms.shaping_settings`.
        options: Evaluation → its options, of `inputs`.
        launch: `training` and `evaluation`: the launcher's options.

    Returns:
        The line.

    Raises:
        StudyError: The training's files cannot be read.
        EvaluationError: An evaluation's files contradict each other.
    """
    journal = launches_of(study, run)
    if run.result is not None:
        training: Any = run.result.line["training"]
        shaping = run.result.line["settings"]
        versions = run.result.line["versions"]
    else:
        # Those of now may be others; journals of earlier versions have none.
        versions = journal.versions(TRAINING) or installed_versions(PACKAGES)
        training = {
            "seconds": _seconds(study, run, TRAINING),
            **training_facts(run.stages[0].folder),
        }
    evaluations = {}
    for stage in run.stages[1:]:
        evaluation = next(item for item in study.evaluations if item.name == stage.name)
        outcome = EVALUATORS[evaluation.script].read(stage.folder)
        evaluations[stage.name] = {
            "script": evaluation.script,
            "options": dict(options[stage.name]),
            "seconds": _seconds(study, run, stage.name),
            "code": journal.codes(stage.name),
            **outcome.to_dict(),
        }
    return {
        "format": FORMAT,
        "study": study.name,
        "arm": run.arm.name,
        "seed": run.seed,
        "declared": declared(study),
        "changes": dict(study.settings_of(run.arm)),
        "settings": dict(shaping),
        "code": journal.codes(TRAINING),
        "versions": dict(versions),
        "launch": {stage: list(words) for stage, words in launch.items()},
        "training": training,
        "evaluations": evaluations,
    }


def _seconds(study: Study, run: Run, stage: str) -> float:
    return round(launches_of(study, run).seconds(stage, signs_of(study, run, stage)), 1)


def training_facts(folder: Path) -> dict[str, Any]:
    """What a training says of itself: steps, and the last values that it logged.

    Args:
        folder: Its output_dir.

    Raises:
        StudyError: Its record cannot be read.
    """
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        results = json.loads((folder / "train_results.json").read_text(encoding="utf-8"))
        history = state["log_history"]
        return {
            "steps": state["global_step"],
            "logged": {
                name: _finite(next((entry[name] for entry in reversed(history) if name in entry), None))
                for name in _LAST_OF
                if any(name in entry for entry in history)
            },
            "train_loss": _finite(results.get("train_loss")),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{folder} has no record of a finished training: {cause(error)}") from error


def _finite(value: Any) -> Any:
    """A value as JSON can hold it; None for NaN and infinity, which a diverged training logs."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
