"""What a fine-tuning recipe can be told, and how a YAML file and the command line are read into it.

One flat namespace holds the model, data and training settings, so `--learning_rate 1e-5` on the command line
overrides `learning_rate: 2e-5` in the file, whichever group it belongs to.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from mce_llm.lm import MatrixLossConfigError, MatrixTrainingArguments
from mce_llm.messages import nearest_hint
from mce_llm.recipes.settings import ConfigurationError, DataArguments, ModelArguments, raise_all

# Each is a number of rows or steps, and none of them can be zero.
_COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


@dataclass
class Recipe:
    """Everything that one run of a recipe was told.

    Attributes:
        model: Which model is trained.
        data: What on.
        training: How, the matrix loss included.
        given: The settings that were given, file and command line merged, by name.
    """

    model: ModelArguments
    data: DataArguments
    training: MatrixTrainingArguments
    given: dict[str, Any]


class _Parser(HfArgumentParser):
    """An argument parser whose errors are exceptions, without two hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(f"{message} (--help lists every setting)")


def parse_recipe(argv: Sequence[str]) -> Recipe:
    """Read `--config FILE.yaml` and overrides such as `--learning_rate 1e-5`; overrides win.

    Args:
        argv: The command line, without the program's name.

    Returns:
        The settings, checked.

    Raises:
        ConfigurationError: A file that cannot be read, unknown settings (with the nearest known name), values of
            the wrong kind, or values that cannot be used.
    """
    groups: Any = (ModelArguments, DataArguments, MatrixTrainingArguments)  # more exact than its annotation
    parser = _Parser(groups, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with settings; the command line overrides it.")
    if "--help" in argv or "-h" in argv:
        parser.parse_args(["--help"])
    argv = _split_equals(argv)
    path, argv = _take_config(argv)
    settings = _read_yaml(path) if path is not None else {}
    for name in ("lora_target_modules", "lora_modules_to_save"):
        if isinstance(layers := settings.get(name), list):
            settings[name] = ",".join(map(str, layers))
    stray, overrides = _by_name(argv)
    nulls = [name for name, value in settings.items() if value is None]
    known = _known_settings()
    problems = [
        f"unknown setting {name!r}{nearest_hint(name, known)}"
        for name in dict.fromkeys([*settings, *overrides])
        if name not in known
    ]
    problems += [
        f"{name} cannot be null; leave it out to get its default"
        for name in nulls
        if name in known and type(None) not in get_args(known[name])
    ]
    problems += [
        f"{name} takes one value, got a list of {len(value)}"
        for name, value in settings.items()
        if isinstance(value, list) and len(value) != 1 and name in known and not _takes_list(parser, name)
    ]
    problems += [f"unexpected word {word!r} on the command line" for word in stray]
    raise_all(problems)
    parser.set_defaults(**dict.fromkeys(nulls))
    words = [word for name, value in settings.items() if value is not None for word in _words(name, value)]
    words += [word for name, values in overrides.items() for word in _flag(name, values)]
    parsed = parser.parse_args(words)
    raise_all([f"{name} must be at least 1, got {n}" for name in _COUNTS if (n := getattr(parsed, name)) < 1])
    if parsed.total_batch_size is not None:
        words += _accumulation(parsed, given="gradient_accumulation_steps" in {**settings, **overrides})
    try:
        model, data, training = parser.parse_args_into_dataclasses(words)[:3]
    except (ConfigurationError, MatrixLossConfigError):
        raise
    except (ValueError, ImportError) as error:  # what TrainingArguments raises for settings that do not fit
        raise ConfigurationError(" ".join(str(error).split())) from error
    given = {**settings, **{name: _plain(getattr(parsed, name)) for name in overrides}}
    return Recipe(model, data, training, given)


def _accumulation(settings: Namespace, *, given: bool) -> list[str]:
    """`--gradient_accumulation_steps` such that an optimizer step has `total_batch_size` rows."""
    total, rows = settings.total_batch_size, settings.per_device_train_batch_size
    if given:
        raise ConfigurationError("give one of total_batch_size and gradient_accumulation_steps, not both")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    at_once = processes * rows
    if total < 1 or total % at_once:
        raise ConfigurationError(
            f"total_batch_size must be a multiple of {at_once} ({processes} processes × "
            f"per_device_train_batch_size {rows}), got {total}"
        )
    return [f"--gradient_accumulation_steps={total // at_once}"]


def _takes_list(parser: _Parser, name: str) -> bool:
    return any(
        f"--{name}" in action.option_strings and action.nargs in ("+", "*") for action in parser._actions
    )


def _known_settings() -> dict[str, Any]:
    """Every setting and its type."""
    groups = (ModelArguments, DataArguments, MatrixTrainingArguments)
    types = [get_type_hints(group) for group in groups]
    return {
        item.name: hints[item.name]
        for group, hints in zip(groups, types, strict=True)
        for item in fields(group)
        if item.init
    }


def _split_equals(argv: Sequence[str]) -> list[str]:
    """`--name=value` as two words, so that there is one way to look at the command line."""
    words: list[str] = []
    for word in argv:
        if word.startswith("--") and "=" in word:
            words += word.split("=", 1)
        else:
            words.append(word)
    return words


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    if "--config" not in argv:
        return None, argv
    at = argv.index("--config")
    if at + 1 >= len(argv):
        raise ConfigurationError("--config needs a file name")
    return argv[at + 1], argv[:at] + argv[at + 2 :]


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"no configuration file {path!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the configuration {path!r}: {error}") from error
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ConfigurationError(f"{path} must hold a mapping of settings, name: value")
    return settings


def _words(name: str, value: Any) -> list[str]:
    """A setting from YAML as it would stand on the command line, so that both are checked alike."""
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}"]


def _by_name(words: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words that stand before the first flag, and for each flag's name those that follow it."""
    stray: list[str] = []
    named: dict[str, list[str]] = {}
    current = stray
    for word in words:
        if word.startswith("--"):
            current = named[word[2:]] = []
        else:
            current.append(word)
    return stray, named


def _flag(name: str, values: list[str]) -> list[str]:
    """An override as words again; joined by `=`, a value may begin with a minus, as -1e-3 does."""
    return [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *values]


def _plain(value: Any) -> Any:
    """A value from the command line as it would stand in YAML."""
    return yaml.safe_load(value) if isinstance(value, str) and value.startswith("{") else value
