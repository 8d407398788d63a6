"""A study file read into a `Study`, with everything that is wrong with its form said at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mce_llm.running.installation import shipped_folder
from mce_llm.running.messages import ConfigurationError, nearest_hint, raise_all
from mce_llm.running.yaml_text import load_yaml
from mce_llm.studies.definition import OUTPUT, STUDY, Arm, Contrast, Evaluation, Primary, Study
from mce_llm.studies.errors import StudyError
from mce_llm.studies.evaluators import EVALUATORS
from mce_llm.studies.fields import NAME, Parts, folder_of

_KEYS = (
    *(
        "name",
        "output",
        "recipe",
        "settings",
        "baseline",
        "arms",
        "seeds",
        "evaluations",
        "primary",
        "launch",
    ),
    *("prepare", "keep_weights", "confidence", "contrasts"),
)
_ARM_KEYS = ("recipe", "settings", "seeds", "differs_in")
_EVALUATION_KEYS = ("script", "settings")
_PRIMARY_KEYS = ("evaluation", "measure", "smallest_difference")
_CONTRAST_KEYS = ("arm", "against")
_STAGES = ("training", "evaluation")
# What the study gives to each run itself.
_OF_THE_STUDY = {
    "output_dir": "each run has a folder of its own below output",
    "seed": "the seeds are those of seeds",
    "config": "the recipe is the one of recipe",
    "resume": "a run that was interrupted goes on",
    "overwrite": "a finished run is never run again",
}
_OF_THE_EVALUATION = {
    "model": "it is the model that was trained",
    "output": "it is a folder below that of the run",
    "revision": "the model is a folder on this machine",
    "overwrite": "a finished evaluation is never run again",
    "config": "its options stand here",
}
_EVALUATION_NAMES = {
    "training": "that of every run is called so",
    "evaluations": "--evaluations.OPTION sets an option of all of them",
}
_FOLDERS_TAKEN = ("logs", "report", "runs", "merged")


@dataclass(frozen=True)
class Overrides:
    """What a command line changes in a study.

    Attributes:
        output: Where everything goes.
        settings: Settings for every arm's recipe.
        evaluations: Evaluation, or `evaluations` for all → options.
        launch: Options of `accelerate launch`, for trainings and evaluations.
    """

    output: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    launch: tuple[str, ...] = ()


def study_file(name: str) -> Path:
    """Return the path of a study file.

    Args:
        name: A file, or the name of a study that mce-llm brings.

    Raises:
        StudyError: There is neither.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    known = {path.stem: path for path in sorted((shipped_folder() / "recipes" / "studies").glob("*.yaml"))}
    stem = name.removeprefix("recipes/").removeprefix("studies/").removesuffix(".yaml")
    if stem in known:
        return known[stem]
    if given.is_dir():
        raise StudyError(f"{name!r} is a folder; name the study file in it, NAME.yaml")
    raise StudyError(
        f"no study file {name!r}, and no study of that name comes with mce-llm{nearest_hint(stem, known)} "
        f"({', '.join(known)})"
    )


@dataclass(frozen=True)
class Reading:
    """A study file as it was read.

    Attributes:
        study: What it says, as far as it could be read: with problems, only to look for further ones.
        problems: What is wrong with its form.
        has_baseline: Whether the first arm is the baseline that the file names.
    """

    study: Study
    problems: tuple[str, ...]
    has_baseline: bool


def read_study(path: Path, overrides: Overrides | None = None) -> Study:
    """Read a study file.

    Args:
        path: The file.
        overrides: What the command line changes.

    Returns:
        The study. Neither its recipes nor its data have been looked at.

    Raises:
        StudyError: The file cannot be read, or what it says is no study; all problems at once.
    """
    reading = reading_of(path, overrides)
    raise_all(list(reading.problems), StudyError)
    return reading.study


def reading_of(path: Path, overrides: Overrides | None = None) -> Reading:
    """Read a study file, with what is wrong with its form.

    Args:
        path: The file.
        overrides: What the command line changes.

    Raises:
        StudyError: The file cannot be read, or is no mapping.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"the study file {path} cannot be read: {error}") from error
    except ConfigurationError as error:
        raise StudyError(str(error)) from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} must hold a mapping: name, arms, seeds, evaluations …")
    reader = _Reader(path, content, overrides or Overrides())
    study = reader.study()
    return Reading(study, tuple(f"{path}: {problem}" for problem in reader.problems), reader.has_baseline)


class _Reader(Parts):
    """Takes a file's content apart; what is wrong is collected in `problems`."""

    def __init__(self, path: Path, content: dict[str, Any], overrides: Overrides) -> None:
        name = content.get("name")
        given = content.get("output")
        if isinstance(given, str):
            given = given.replace(STUDY, folder_of(path))
        output = overrides.output or given
        super().__init__(path, Path(str(output or f"runs/studies/{name}")).expanduser())
        self.overrides, self.content = overrides, content
        self.has_baseline = False
        self.check_keys(content, _KEYS, "the study")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            quoted = "" if isinstance(name, (str, type(None))) else f"; in quotes it is a text: '{name}'"
            self.problems.append(
                f"name must be letters, digits, '.', '_' and '-', 100 at most, got {name!r}{quoted}"
            )
            name = "study"
        if given is not None and (not isinstance(given, str) or not given or OUTPUT in given):
            self.problems.append(f"output must be a folder, got {given!r}")
        self.name = name

    def study(self) -> Study:
        """The study, as far as its form allows."""
        seeds = self.seeds(self.content.get("seeds"), "seeds")
        settings = {
            **self.settings(self.content.get("settings"), "settings", _OF_THE_STUDY),
            **self.settings(self.overrides.settings, "the command line", _OF_THE_STUDY),
        }
        arms = self._arms(seeds)
        evaluations = self._evaluations()
        primary = self._primary(evaluations)
        launch = self._launch()
        contrasts = self._contrasts(arms)
        prepare = self.preparations(self.content.get("prepare"))
        keep = self.content.get("keep_weights", True)
        if not isinstance(keep, bool) and keep != "model":
            self.problems.append(f"keep_weights must be true, false or model, got {keep!r}")
            keep = True
        confidence = self.content.get("confidence", 0.95)
        if not isinstance(confidence, float) or not 0.5 <= confidence < 1:
            self.problems.append(
                f"confidence must be in [0.5, 1), got {confidence!r}; 0.95 is the usual choice"
            )
            confidence = 0.95
        return Study(
            self.name,
            self.path,
            self.output,
            settings,
            arms,
            seeds,
            evaluations,
            primary,
            launch,
            prepare,
            keep,
            confidence,
            contrasts,
        )

    def _arms(self, seeds: tuple[int, ...]) -> tuple[Arm, ...]:
        given = self.mapping(self.content.get("arms"), "arms")
        recipe = self.content.get("recipe")
        shared = None if recipe is None else self.recipe(recipe, "recipe")
        arms: dict[str, Arm] = {}
        for name, value in given.items():
            where = f"arm {name}"
            self.check_name(name, where)
            content = self.mapping(value, where)
            self.check_keys(content, _ARM_KEYS, where)
            settings = self.settings(content.get("settings"), f"{where}: settings", _OF_THE_STUDY)
            self.problems += [
                f"{setting} is given on the command line for every arm, and is what arm {name} changes; edit {self.path}"
                for setting in settings
                if setting in self.overrides.settings
            ]
            own = self.recipe(content["recipe"], f"{where}: recipe") if "recipe" in content else shared
            if own is None:
                self.problems.append(f"{where} has no recipe, and the study names none")
                own = Path()
            of_arm = self.seeds(content["seeds"], f"{where}: seeds", seeds) if "seeds" in content else seeds
            differs = content.get("differs_in", [])
            if not isinstance(differs, list) or not all(isinstance(item, str) for item in differs):
                self.problems.append(f"{where}: differs_in must be a list of settings, got {differs!r}")
                differs = []
            arms[name] = Arm(name, own, settings, of_arm, tuple(differs))
        self.check_case(list(arms), "arms")
        return self._baseline_first(arms, seeds)

    def _baseline_first(self, arms: dict[str, Arm], seeds: tuple[int, ...]) -> tuple[Arm, ...]:
        if len(arms) < 2:
            self.problems.append(f"arms must name two arms at least, got {', '.join(arms) or 'none'}")
        baseline = self.content.get("baseline")
        if baseline is None:
            self.problems.append(
                f"there is no baseline; name the arm that the others are held against ({', '.join(arms)})"
            )
        elif not isinstance(baseline, str) or baseline not in arms:
            self.problems.append(
                f"baseline: there is no arm {baseline!r}{nearest_hint(str(baseline), arms)} ({', '.join(arms)})"
            )
        else:
            if set(arms[baseline].seeds) != set(seeds):
                self.problems.append(f"arm {baseline} is the baseline and must have all seeds of the study")
            self.has_baseline = True
            return (arms[baseline], *(arm for name, arm in arms.items() if name != baseline))
        return tuple(arms.values())

    def _evaluations(self) -> tuple[Evaluation, ...]:
        found = []
        given = self.mapping(self.content.get("evaluations"), "evaluations")
        everywhere = self.overrides.evaluations.get("evaluations", {})
        for name, value in given.items():
            where = f"evaluation {name}"
            self.check_name(name, where)
            if name in _FOLDERS_TAKEN or name.startswith("checkpoint-"):
                self.problems.append(f"{where}: choose another name; a run's folder has a {name} of its own")
            if reason := _EVALUATION_NAMES.get(name):
                self.problems.append(f"{where}: choose another name; {reason}")
            if "." in name:
                self.problems.append(
                    f"{where}: the name of an evaluation has no '.', as --NAME.OPTION sets one of its options"
                )
            content = self.mapping(value, where)
            self.check_keys(content, _EVALUATION_KEYS, where)
            script = content.get("script")
            if not isinstance(script, str) or script not in EVALUATORS:
                self.problems.append(
                    f"{where}: script must be one of {', '.join(EVALUATORS)}, got {script!r}"
                    f"{nearest_hint(str(script), EVALUATORS)}"
                )
                continue
            settings = self.settings(content.get("settings"), f"{where}: settings", _OF_THE_EVALUATION)
            changed = {**everywhere, **self.overrides.evaluations.get(name, {})}
            self.settings(changed, f"--{name}.…", _OF_THE_EVALUATION)
            found.append(Evaluation(name, script, {**settings, **changed}))
        self.problems += [
            f"--{name}.{option}: there is no evaluation {name!r}{nearest_hint(name, given)} ({', '.join(given)})"
            for name, options in self.overrides.evaluations.items()
            if name not in (*given, "evaluations")
            for option in options
        ]
        self.check_case(list(given), "evaluations")
        if not given:
            self.problems.append(
                "evaluations must name one at least; without any there is nothing to compare"
            )
        return tuple(found)

    def _primary(self, evaluations: Sequence[Evaluation]) -> Primary:
        content = self.mapping(self.content.get("primary"), "primary")
        self.check_keys(content, _PRIMARY_KEYS, "primary")
        named = {evaluation.name: evaluation for evaluation in evaluations}
        name = content.get("evaluation", evaluations[0].name if len(evaluations) == 1 else None)
        if not isinstance(name, str) or name not in named:
            if evaluations:
                self.problems.append(
                    f"primary: evaluation must name the one whose result the study is about, one of {', '.join(named)}; "
                    f"got {name!r}"
                )
            return Primary("", "")
        measures = EVALUATORS[named[name].script].measures
        measure = content.get("measure", measures[0])
        if measure not in measures:
            self.problems.append(
                f"primary: {name} has no measure {measure!r}{nearest_hint(str(measure), measures)} ({', '.join(measures)})"
            )
        smallest = content.get("smallest_difference")
        if smallest is not None and (
            isinstance(smallest, bool)
            or not isinstance(smallest, (int, float))
            or not 0 < smallest < float("inf")
        ):
            finite = " and finite" if isinstance(smallest, float) else ""
            self.problems.append(f"primary: smallest_difference must be positive{finite}, got {smallest!r}")
            smallest = None
        return Primary(name, str(measure), smallest)

    def _contrasts(self, arms: Sequence[Arm]) -> tuple[Contrast, ...]:
        given = self.content.get("contrasts", [])
        if not isinstance(given, list):
            self.problems.append(f"contrasts must be a list of {{arm: …, against: …}}, got {given!r}")
            return ()
        named = {arm.name: arm for arm in arms}
        found: list[Contrast] = []
        for number, value in enumerate(given, start=1):
            where = f"contrast {number}"
            content = self.mapping(value, where)
            self.check_keys(content, _CONTRAST_KEYS, where)
            pair = [content.get(key) for key in _CONTRAST_KEYS]
            if unknown := [name for name in pair if not isinstance(name, str) or name not in named]:
                self.problems += [
                    f"{where}: there is no arm {name!r}{nearest_hint(str(name), named)} ({', '.join(named)})"
                    for name in unknown
                ]
                continue
            arm, against = (named[str(name)] for name in pair)
            if arm is against:
                self.problems.append(f"{where}: {arm.name} is held against itself")
            elif self.content.get("baseline") in (arm.name, against.name):
                self.problems.append(f"{where}: every arm is held against the baseline anyway; take it out")
            elif len(set(arm.seeds) & set(against.seeds)) < 2:
                self.problems.append(f"{where}: {arm.name} and {against.name} have no two seeds in common")
            elif {arm.name, against.name} in [{before.arm, before.against} for before in found]:
                self.problems.append(f"{where}: {arm.name} and {against.name} are there twice")
            else:
                found.append(Contrast(arm.name, against.name))
        return tuple(found)

    def _launch(self) -> dict[str, tuple[str, ...]]:
        given = self.mapping(self.content.get("launch"), "launch")
        self.check_keys(given, _STAGES, "launch")
        return {
            stage: (*self.launch_words(given.get(stage), stage), *self.overrides.launch) for stage in _STAGES
        }
