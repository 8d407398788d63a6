"""What a fine-tuning recipe can be told, and how a YAML file and the command line are read into it.

One flat namespace holds the model, data and training settings, so `--learning_rate 1e-5` on the command line
overrides `learning_rate: 2e-5` in the file, whichever group it belongs to.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from mce_llm.data import PROMPTS
from mce_llm.lm import MatrixLossConfigError, MatrixTrainingArguments
from mce_llm.messages import nearest_hint

# Each is a number of rows or steps, and none of them can be zero.
_COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


class ConfigurationError(ValueError):
    """Settings that cannot be used; the message lists all that are wrong."""


@dataclass
class ModelArguments:
    """Which model is trained, and how much of it."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or directory of the model to fine-tune."}
    )
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "Train from scratch: settings of a transformers config with its model_type, as a mapping in "
            "YAML or JSON on the command line; vocab_size defaults to the tokenizer's."
        },
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Tokenizer, where it is not the model's own."}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Dtype of the weights: float32, bfloat16, float16, or auto for the stored one."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, …; transformers chooses by default."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the Python code that a hub repository brings. Off unless asked for."},
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains all the weights."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of LoRA adapters."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of LoRA adapters."})
    lora_target_modules: str = field(
        default="all-linear",
        metadata={
            "help": "Layers that get an adapter, separated by commas, or a list in YAML; all-linear leaves out the head."
        },
    )

    def __post_init__(self) -> None:
        """Check the combination.

        Raises:
            ConfigurationError: Neither or both sources of a model, or unusable values.
        """
        problems = []
        if (self.model_name_or_path is None) == (self.model_config is None):
            problems.append(
                "give exactly one of model_name_or_path (fine-tune) and model_config (from scratch)"
            )
        if self.model_config is not None and self.tokenizer_name_or_path is None:
            problems.append("a model from scratch needs tokenizer_name_or_path")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            problems.append(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        if self.lora_r < 0:
            problems.append(f"lora_r must be 0 (no adapters) or a rank, got {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            problems.append(f"lora_dropout must be in [0, 1), got {self.lora_dropout}")
        self.config_settings = _mapping("model_config", self.model_config, problems)
        if self.model_config is not None and not problems and "model_type" not in self.config_settings:
            problems.append("model_config must name its model_type, such as llama")
        _raise_all(problems)


@dataclass
class DataArguments:
    """What the model is trained on."""

    dataset: str = field(
        metadata={
            "help": "gsm8k, metamathqa, a hub id, or a local json, jsonl, csv or parquet file or directory."
        }
    )
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_name: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_format: str = field(
        default="auto", metadata={"help": "auto, gsm8k, metamath, plain or chat: what the records look like."}
    )
    columns: str | None = field(
        default=None,
        metadata={"help": "Mapping role → column for other records: {question: …, response: …}."},
    )
    limit: int | None = field(default=None, metadata={"help": "Train on this many examples at most."})
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Data for the held-out loss, read like the training data."}
    )
    eval_split: str = field(default="test", metadata={"help": "Split of eval_dataset."})
    eval_limit: int | None = field(default=None, metadata={"help": "Evaluate on this many examples at most."})
    prompt: str = field(default="metamath", metadata={"help": f"Prompt template: {', '.join(PROMPTS)}."})
    max_length: int = field(default=512, metadata={"help": "The most tokens an example may have."})
    overlong: str = field(
        default="truncate", metadata={"help": "What happens to longer examples: truncate or drop."}
    )
    packing: bool = field(
        default=False, metadata={"help": "Pack examples into rows of max_length; they cannot see each other."}
    )
    total_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows in an optimizer step over all processes; gradient_accumulation_steps follows from it."
        },
    )
    resume: bool = field(
        default=True, metadata={"help": "Go on from the last checkpoint in output_dir, if there is one."}
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Remove a finished run, or with resume false the checkpoints, that output_dir holds."
        },
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Unusable values.
        """
        problems: list[str] = []
        if self.prompt not in PROMPTS:
            problems.append(f"unknown prompt {self.prompt!r}{nearest_hint(self.prompt, PROMPTS)}")
        if self.overlong not in ("truncate", "drop"):
            problems.append(f"overlong must be truncate or drop, got {self.overlong!r}")
        for name in ("max_length", "limit", "eval_limit", "total_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} must be at least 1, got {value}")
        self.column_mapping = _mapping("columns", self.columns, problems) or None
        _raise_all(problems)


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
    if isinstance(layers := settings.get("lora_target_modules"), list):
        settings["lora_target_modules"] = ",".join(map(str, layers))
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
    _raise_all(problems)
    parser.set_defaults(**dict.fromkeys(nulls))
    words = [word for name, value in settings.items() if value is not None for word in _words(name, value)]
    words += [word for name, values in overrides.items() for word in _flag(name, values)]
    parsed = parser.parse_args(words)
    _raise_all(
        [f"{name} must be at least 1, got {n}" for name in _COUNTS if (n := getattr(parsed, name)) < 1]
    )
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


def _mapping(name: str, text: str | None, problems: list[str]) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError as error:
        problems.append(f"{name} is not a mapping: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{name} must be a mapping, got {text!r}")
        return {}
    return value


def _raise_all(problems: list[str]) -> None:
    if len(problems) == 1:
        raise ConfigurationError(problems[0])
    if problems:
        raise ConfigurationError("".join(f"\n- {problem}" for problem in problems))
