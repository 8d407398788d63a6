"""What a study has to run, in which order, by which commands, and what of it is done."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.eval.output_directory import OutputDirectory
from mce_llm.finetuning.outputs import finished_results
from mce_llm.running.installation import shipped_file
from mce_llm.running.messages import raise_all
from mce_llm.running.visible_text import visible
from mce_llm.studies.arms import recipe_words
from mce_llm.studies.definition import Arm, Evaluation, Study
from mce_llm.studies.errors import StudyError
from mce_llm.studies.evaluators import EVALUATORS, option_words
from mce_llm.studies.results import RunResult
from mce_llm.studies.slots import Slot

TRAINING = "training"
LAUNCHER = "mce_llm.running.launcher"
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
# The options that `auto` fills in from what the training recorded, and the model.
_FILLED_IN = ("model", "prompt", "system_prompt", "chat_template_kwargs")


@dataclass(frozen=True)
class Stage:
    """A training, or one evaluation of its model.

    Attributes:
        name: `training`, or the evaluation's name.
        folder: Where it writes.
        script: The script that is launched.
        words: What the script is given.
        done: Whether its results are there.
    """

    name: str
    folder: Path
    script: Path
    words: tuple[str, ...]
    done: bool

    def command(self, slot: Slot, launch: Mapping[str, tuple[str, ...]]) -> list[str]:
        """The command that runs it.

        Args:
            slot: On which share of the machine.
            launch: The study's options of `accelerate launch`.
        """
        kind = TRAINING if self.name == TRAINING else "evaluation"
        return [
            sys.executable,
            "-m",
            LAUNCHER,
            *slot.launch_words(launch[kind]),
            str(self.script),
            *self.words,
        ]


@dataclass(frozen=True)
class Run:
    """One arm with one seed: its training, and then its evaluations.

    Attributes:
        arm: The arm.
        seed: The training seed.
        stages: The training and the evaluations whose results are not in the file, and are to be made now.
        result: What the file has of it.
        later: The evaluations that are lacking too, and are left for another time.
    """

    arm: Arm
    seed: int
    stages: tuple[Stage, ...]
    result: RunResult | None
    later: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether all its results that are asked for are in the file."""
        return not self.stages


def planned_runs(
    study: Study, results: Mapping[tuple[str, int], RunResult], now: Collection[str] = ()
) -> list[Run]:
    """All runs of a study in their order; see `Study.runs`.

    Args:
        study: The study.
        results: What is in its file.
        now: The evaluations that are to be made now; all by default.
    """
    runs = []
    for arm, seed in study.runs():
        result = results.get((arm.name, seed))
        lacking = [
            evaluation
            for evaluation in study.evaluations
            if result is None or evaluation.name not in result.evaluations
        ]
        later = tuple(item.name for item in lacking if now and item.name not in now)
        evaluations = [
            _evaluation(study.folder(arm.name, seed), item) for item in lacking if item.name not in later
        ]
        stages = (_training(study, arm, seed, result is not None), *evaluations) if evaluations else ()
        runs.append(Run(arm, seed, stages, result, later))
    return runs


def check_weights(runs: Sequence[Run]) -> None:
    """Refuse to evaluate trained models whose weights are gone.

    Args:
        runs: Of `planned_runs`.

    Raises:
        StudyError: There are such.
    """
    gone = [
        f"{run.name} was trained, its weights are gone, and {', '.join(stage.name for stage in open_)} of it is lacking; "
        f"remove {run.stages[0].folder}{' and its line of results.jsonl' * (run.result is not None)} to train it again, or "
        "take the evaluation out"
        for run in runs
        if run.stages and run.stages[0].done and not has_weights(run.stages[0].folder)
        if (open_ := [stage for stage in run.stages[1:] if not stage.done])
    ]
    raise_all(gone, StudyError)


def _training(study: Study, arm: Arm, seed: int, known: bool) -> Stage:
    folder = study.folder(arm.name, seed)
    done = known or any(path.name == "train_results.json" for path in finished_results(folder))
    words = tuple(recipe_words(study, arm, seed))
    return Stage(TRAINING, folder, shipped_file("recipes/finetune.py"), words, done)


def _evaluation(model: Path, evaluation: Evaluation) -> Stage:
    folder = model / evaluation.name
    words = ("--model", str(model), "--output", str(folder), *option_words(evaluation.settings))
    script = shipped_file(EVALUATORS[evaluation.script].script)
    return Stage(evaluation.name, folder, script, words, OutputDirectory(folder).finished() is not None)


def has_weights(folder: Path) -> bool:
    """Whether a run's folder has the weights that it was trained to."""
    return any(True for pattern in _WEIGHTS for _ in folder.glob(pattern))


def weight_files(folder: Path, keep: bool | str) -> list[Path]:
    """What to delete of a finished run's weights, which only going on or evaluating needs.

    Args:
        folder: The `output_dir` of a run.
        keep: True for everything; `model` for the weights that it was trained to, without checkpoints and merged copies;
            False for nothing.
    """
    if keep is True:
        return []
    beside = [*sorted(folder.glob("checkpoint-*")), *[folder / "merged"] * (folder / "merged").is_dir()]
    if keep == "model":
        return beside
    return [*beside, *(path for pattern in _WEIGHTS for path in sorted(folder.glob(pattern)))]


def other_options(folder: Path, options: Any) -> list[str]:
    """In what an evaluation's folder was begun with other options than are asked for now.

    Args:
        folder: The folder.
        options: The parsed options.

    Returns:
        `name: before → now`, one text each; empty where there is no evaluation yet, or no difference.
    """
    try:
        before = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    now = options.recorded()
    return [
        f"{name}: {before.get(name)!r} → {now.get(name)!r}"
        for name in dict.fromkeys([*before, *now])
        if name not in _FILLED_IN and before.get(name) != now.get(name)
    ]


def shown_command(words: list[str], environment: Mapping[str, str] | None = None) -> str:
    """A command as it can be pasted into a shell."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return visible(" ".join([*variables, shlex.join(words)]), one_line=True)
