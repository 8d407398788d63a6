"""The prompt that a model was trained with, as its folder tells: what `--prompt auto` is, and what an explicit one is held against.

A run of the recipe leaves `recipe.yaml` in its output folder, a checkpoint all settings in `run_settings.json`; merged
models keep either. A model that is not in a folder with such a file has no record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mce_llm.data import PROMPTS
from mce_llm.eval.asking import QuestionsConfig
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.presets import AUTO, CHAT_PRESETS, UNRECORDED
from mce_llm.running.folder import RECIPE
from mce_llm.running.messages import ConfigurationError, cause, model_path_problem, nearest_hint
from mce_llm.running.settings import mapping_of
from mce_llm.running.yaml_text import load_record

SETTINGS_OF_CHECKPOINT = "run_settings.json"
"""What `mce_llm.lm.training.run_settings` writes into each checkpoint."""
TRAINING_DEFAULT = "metamath"
"""The prompt of a recipe that names none."""
_Config = TypeVar("_Config", bound=QuestionsConfig)
_OF_A_RECIPE = {"model_name_or_path", "dataset", "prompt", "tokenizer_name_or_path"}


@dataclass(frozen=True)
class TrainedPrompt:
    """The wording that a model was trained with.

    Attributes:
        prompt: A key of `mce_llm.data.PROMPTS`.
        system_prompt: The system message of a chat prompt.
        chat_template_kwargs: What the chat template was given besides, as JSON.
        place: The file that says so.
    """

    prompt: str
    system_prompt: str | None
    chat_template_kwargs: str | None
    place: Path

    @property
    def options(self) -> dict[str, str | None]:
        """The options of an evaluation that ask with this wording."""
        return {name: getattr(self, name) for name in ("prompt", "system_prompt", "chat_template_kwargs")}

    def __str__(self) -> str:
        return _told(self.options)


def trained_prompt(model: str, revision: str | None = None, *, on_hub: bool = True) -> TrainedPrompt | None:
    """Read what the folder of a model says of the prompt that it was trained with.

    Args:
        model: A directory: the output of a recipe, a checkpoint in it, its adapters, or a merged model; or a hub id, where
            what a recipe pushed has its `recipe.yaml`.
        revision: A branch, tag or commit of a hub id.
        on_hub: Whether a name that is no directory may be a hub id.

    Returns:
        The prompt, or None where there is no record.

    Raises:
        EvaluationError: If there is a record that cannot be read.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        places = _on_the_hub(model, revision) if on_hub and not folder.exists() else []
    else:
        folder = folder.absolute()
        places = [folder / SETTINGS_OF_CHECKPOINT, folder / RECIPE]
    if folder.name == "merged" or folder.name.startswith("checkpoint-"):
        places.append(folder.parent / RECIPE)
    for place in places:
        if place.is_file():
            settings = _settings(place)
            if _OF_A_RECIPE & set(settings):
                return _read(settings, place)
    return None


def with_trained_prompt(config: _Config, *, on_hub: bool = True) -> tuple[_Config, list[str]]:
    """Put the prompt that the model was trained with in the place of `auto`, and compare an explicit one with it.

    Args:
        config: The options.
        on_hub: Whether a model that is no directory may be a hub id; not for one in memory.

    Returns:
        The options, with the name of a preset as prompt, and what to say of it.

    Raises:
        EvaluationError: If the prompt is `auto` and the record cannot be read, names a prompt that is unknown here, or has no
            place for other options.
    """
    try:
        record = trained_prompt(config.model, config.revision, on_hub=on_hub)
        if record is not None and config.prompt == AUTO and record.prompt not in PROMPTS:
            raise EvaluationError(
                f"{record.place} says that the model was trained with the prompt {record.prompt!r}"
                f"{nearest_hint(record.prompt, PROMPTS)}, which is none of {', '.join(PROMPTS)}"
            )
    except EvaluationError as error:
        if config.prompt == AUTO:
            raise EvaluationError(f"{error}; choose a prompt with --prompt") from error
        return config, [f"warning: whether prompt {config.prompt} is the one of training is unknown: {error}"]
    if record is None:
        if config.prompt != AUTO:
            return config, []
        return _with(config, prompt=UNRECORDED), [_no_record(config.model)]
    if config.prompt != AUTO:
        notes = []
    else:
        taken = {
            name: value
            for name, value in record.options.items()
            if value is not None and (name == "prompt" or getattr(config, name) is None)
        }
        config = _with(config, **taken)
        notes = [f"{_told(taken)}: as the model was trained ({record.place})"]
    asked = {name: getattr(config, name) for name in record.options}
    differing = [name for name in asked if _plain(name, asked[name]) != _plain(name, record.options[name])]
    if differing:
        then = _told({name: record.options[name] for name in differing})
        now = _told({name: asked[name] for name in differing})
        notes.append(
            f"warning: the model was trained with {then} ({record.place}) and is asked with {now}; --prompt auto asks as it was "
            "trained"
        )
    return config, notes


def _with(config: _Config, **changed: Any) -> _Config:
    """The options with others in place of what `auto` stands for."""
    try:
        return replace(config, **changed)
    except EvaluationError as error:
        raise EvaluationError(f"{error}, for which auto stands here; name another with --prompt") from error


def _on_the_hub(name: str, revision: str | None) -> list[Path]:
    """The recipe in a repository of the hub, where it is in the cache or can be downloaded."""
    from huggingface_hub import hf_hub_download

    try:
        if model_path_problem(name, revision) is not None:
            return []  # which loading the model says
        return [Path(hf_hub_download(name, RECIPE, revision=revision))]
    except Exception:  # none there, no access, no network, no name of the hub: these have no common type
        return []


def _no_record(model: str) -> str:
    folder = Path(model).expanduser()
    has_template = (folder / "chat_template.jinja").is_file() or '"chat_template"' in _text(
        folder / "tokenizer_config.json"
    )
    advice = (
        f"its tokenizer has a chat template, so {' or '.join(CHAT_PRESETS)} may be meant"
        if has_template
        else "zero-shot-cot and cot-8shot are for base models, chat-cot for instruct models"
    )
    return (
        f"warning: there is no record of the prompt that {model} was trained with; it is asked with {UNRECORDED}, MetaMath's. "
        f"Choose with --prompt: {advice}"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _settings(place: Path) -> dict[str, Any]:
    try:
        text = place.read_text(encoding="utf-8")
        settings = (
            json.loads(text)["settings"]
            if place.name == SETTINGS_OF_CHECKPOINT
            else load_record(text, str(place))
        )
        return dict(settings)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, ConfigurationError) as error:
        raise EvaluationError(
            f"{place}, which says how the model was trained, cannot be read ({cause(error)})"
        ) from error


def _read(settings: Mapping[str, Any], place: Path) -> TrainedPrompt:
    arguments = settings.get("chat_template_kwargs")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    system = settings.get("system_prompt")
    return TrainedPrompt(
        str(settings.get("prompt") or TRAINING_DEFAULT),
        None if system is None else str(system),
        None if arguments is None else str(arguments),
        place,
    )


def _plain(name: str, value: str | None) -> Any:
    """A value to compare: two ways to write a mapping are one."""
    return mapping_of(name, value, []) if name == "chat_template_kwargs" else value


def _told(options: Mapping[str, str | None]) -> str:
    return ", ".join(
        f"{name} {value if name != 'system_prompt' else repr(value)}" if value is not None else f"no {name}"
        for name, value in options.items()
        if value is not None or name != "prompt"
    )
