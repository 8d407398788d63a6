"""What the recipe of every arm says in full, parsed as the recipe does, and in what the arms differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from mce_llm.data.errors import DataError
from mce_llm.data.files import files_of, is_pattern, looks_local
from mce_llm.data.sources import KNOWN_SOURCES
from mce_llm.errors import MceLlmError
from mce_llm.finetuning.configuration import GROUPS, Recipe, parse_recipe
from mce_llm.finetuning.resuming import EFFECTS, settings_of_recipe
from mce_llm.lm.config import OWN_SETTINGS
from mce_llm.lm.training.resuming import Effect
from mce_llm.running.messages import model_path_problem
from mce_llm.running.settings import setting_words
from mce_llm.studies.definition import Arm, Study
from mce_llm.studies.errors import StudyError
from mce_llm.studies.provenance import content_of

# What says how and where a run is computed, reported on and saved.
_WITHOUT_EFFECT = (Effect.REPORTED, Effect.NONE, Effect.MEASURE)
# Of the run, not of the arm.
_OF_THE_RUN = frozenset({"seed", "output_dir"})
# The rows of an optimizer step stand for these.
_BATCH = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps", "total_batch_size"})
ROWS = "rows an optimizer step"
MICRO_ROWS = "rows a micro-batch, over all processes"
# Losses that are statistics of a micro-batch.
_OF_MICRO_BATCH = ("marginal", "expected")
_DATA, _MODELS = (
    ("dataset", "eval_dataset"),
    ("model_name_or_path", "tokenizer_name_or_path", "chat_template"),
)
# With these, what was measured on held-out data decides which weights are kept.
_CHOOSING = ("load_best_model_at_end", "early_stopping_patience")


@dataclass(frozen=True)
class ArmRecipe:
    """The recipe of an arm.

    Attributes:
        arm: Which.
        recipe: What it was parsed to, for the first of its seeds.
        shaping: The settings that shape what is trained, defaults included: local files by their content, the batch
            by its rows.
    """

    arm: Arm
    recipe: Recipe
    shaping: Mapping[str, Any]


def recipe_words(study: Study, arm: Arm, seed: int) -> list[str]:
    """What the recipe's script is given for one run.

    Args:
        study: The study.
        arm: One of its arms.
        seed: One of the arm's seeds.
    """
    changed = {**study.settings_of(arm), "seed": seed, "output_dir": str(study.folder(arm.name, seed))}
    words = ["--config", str(arm.recipe)]
    for name, value in changed.items():
        for word in setting_words(name, value):
            flag, equals, text = word.partition("=")
            words += [flag, text] if equals and flag == f"--{name}" and not text.startswith("-") else [word]
    return words


def parsed_arms(
    study: Study, processes: int, problems: list[str], *, elsewhere: bool = False, inputs: bool = True
) -> list[ArmRecipe]:
    """Parse the recipe of every arm, with as many processes as it will run on.

    Args:
        study: The study.
        processes: Of one training.
        problems: What is wrong with recipes, their settings and their files is added here.
        elsewhere: Whether this machine is not the one that trains, so that its lack of a GPU says nothing.
        inputs: Whether files have to be there.

    Returns:
        Those that could be parsed, in the order of the arms.
    """
    found, told = [], set()
    for arm in study.arms:
        try:
            recipe = _parse(recipe_words(study, arm, (arm.seeds or (0,))[0]), processes, elsewhere=elsewhere)
        except MceLlmError as error:
            problems.append(f"arm {arm.name} ({arm.recipe}): {error}")
            continue
        if inputs:
            missing = list(_missing(recipe, from_hub=not elsewhere))
            problems += [problem for problem in missing if problem not in told]
            told |= set(missing)
        found.append(ArmRecipe(arm, recipe, shaping_settings(recipe, processes)))
    return found


def _parse(words: Sequence[str], processes: int, *, elsewhere: bool) -> Recipe:
    """Parse a recipe as one process does, and see whether its batch can be divided among so many."""
    try:
        recipe = parse_recipe(words)
    except MceLlmError as error:
        if not elsewhere or "use_cpu" not in str(error):
            raise
        recipe = parse_recipe([*words, "--use_cpu", "true"])
    total, at_once = recipe.data.total_batch_size, recipe.training.per_device_train_batch_size * processes
    if total is not None and total % at_once:
        raise StudyError(
            f"total_batch_size must be a multiple of {at_once} ({processes} processes × per_device_train_batch_size "
            f"{recipe.training.per_device_train_batch_size}), got {total}"
        )
    return recipe


def _missing(recipe: Recipe, *, from_hub: bool) -> Iterator[str]:
    """Inputs of a recipe that are not there, in words; the hub is asked where that is wanted."""
    for name in _DATA:
        source = getattr(recipe.data, name)
        if source is not None and source not in KNOWN_SOURCES and looks_local(source):
            try:
                files_of(source, None if is_pattern(source) else recipe.data.dataset_name)
            except DataError as error:
                yield f"{name}: {error}"
    for name, revision in (("model_name_or_path", "model_revision"), ("tokenizer_name_or_path", None)):
        source = getattr(recipe.model, name)
        if source is None or (name.startswith("tokenizer") and not looks_local(source)):
            continue
        if name.startswith("tokenizer"):
            if not Path(source).expanduser().is_dir():
                yield f"{name}: {source}: there is no such directory"
        elif (from_hub or looks_local(source)) and (
            problem := model_path_problem(source, getattr(recipe.model, str(revision)))
        ):
            yield f"{name}: {problem}"


def shaping_settings(recipe: Recipe, processes: int) -> dict[str, Any]:
    """The settings of a recipe that shape what is trained, defaults included, seed and folder left out.

    Args:
        recipe: The recipe.
        processes: Of one training.

    Returns:
        Name → value; a local file or model is named by its content, and the batch by its rows over all processes.
    """
    every = settings_of_recipe(recipe)
    chosen = any(every.get(name) for name in _CHOOSING)
    found = {
        name: value
        for name, value in every.items()
        if name not in _OF_THE_RUN | _BATCH
        and (
            EFFECTS.get(name, Effect.REFUSED) not in _WITHOUT_EFFECT
            or (chosen and (EFFECTS[name] is Effect.MEASURE or name.startswith("eval_") or name in _CHOOSING))
        )
    }
    for name in (*_DATA, *_MODELS):
        place = found.get(name)
        if isinstance(place, str) and place not in KNOWN_SOURCES:
            found[name] = content_of(place) or place
    rows = int(every["per_device_train_batch_size"]) * processes
    found[ROWS] = every["total_batch_size"] or rows * int(every["gradient_accumulation_steps"])
    if every.get("matrix_kind") in _OF_MICRO_BATCH and every.get("matrix_weight"):
        found[MICRO_ROWS] = rows
    return found


def check_arms(arms: Sequence[ArmRecipe], baseline: str | None) -> list[str]:
    """Find arms that differ from the baseline in more than the study file says, or in nothing.

    Args:
        arms: The parsed arms.
        baseline: The name of the baseline; None where it is not known.

    Returns:
        The problems, in words.
    """
    problems = []
    reference = next((parsed for parsed in arms if parsed.arm.name == baseline), None)
    for number, parsed in enumerate(arms):
        for earlier in arms[:number]:
            if not setting_differences(earlier.shaping, parsed.shaping):
                problems.append(
                    f"arms {earlier.arm.name} and {parsed.arm.name} are the same: no setting that shapes what is trained "
                    "differs; take one of them out"
                )
        if reference is None or parsed is reference:
            continue
        arm, first = parsed.arm, reference.arm
        said = {*arm.settings, *first.settings, *arm.differs_in, *first.differs_in}
        if said & _BATCH:
            said |= {ROWS, MICRO_ROWS}
        if said & {"matrix_kind", "matrix_weight", "loss"}:
            said |= {MICRO_ROWS}
        differences = setting_differences(reference.shaping, parsed.shaping)
        unsaid = {
            name: pair
            for name, pair in differences.items()
            if name not in said and not ("loss" in said and _follows_from_loss(name, pair))
        }
        if unsaid:
            told = "; ".join(f"{name} {a!r} and {b!r}" for name, (a, b) in unsaid.items())
            problems.append(
                f"arms {first.name} and {arm.name} differ in more than the study says: {told}; make their recipes the "
                f"same there, or name it in differs_in of arm {arm.name}"
            )
        if idle := [name for name in arm.differs_in if name not in differences and name not in _BATCH]:
            problems.append(
                f"arm {arm.name}: differs_in names {', '.join(idle)}, which is the same in the baseline; take it out"
            )
    return problems


def _follows_from_loss(name: str, pair: tuple[Any, Any]) -> bool:
    """Whether a setting belongs to a loss, and is at its default with that loss and unset with the other."""
    own = {"matrix_weight" if key == "weight" else key: default for key, (_, default) in OWN_SETTINGS.items()}
    return name in own and all(value is None or value == own[name] for value in pair)


def setting_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Find the settings that differ; one that a side does not have yet is at its default there.

    Args:
        before: Settings by name.
        now: Others.

    Returns:
        Name → the two values.
    """
    defaults = _defaults()
    found = {}
    for name in dict.fromkeys([*before, *now]):
        a, b = (side.get(name, defaults.get(name)) for side in (before, now))
        if a != b:
            found[name] = (a, b)
    return found


def _defaults() -> dict[str, Any]:
    return {
        item.name: item.default for group in GROUPS for item in fields(group) if item.default is not MISSING
    }
