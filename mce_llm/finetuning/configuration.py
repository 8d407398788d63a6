"""What a fine-tuning recipe can be told: the groups of its settings, and how they depend on each other.

How files and command lines are read is in `mce_llm.running.settings`.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from mce_llm.finetuning.foreign_names import FOREIGN
from mce_llm.finetuning.settings import DataArguments, ModelArguments
from mce_llm.lm import MatrixLossConfigError, MatrixTrainingArguments
from mce_llm.running.launched_precision import (
    launched_precision,
    leave_out_launched_precision,
    unused_precision_text,
)
from mce_llm.running.settings import ConfigurationError, parse_settings, raise_all, settings_of

# Each is a number of rows or steps, and none of them can be zero.
_COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")

GROUPS = (ModelArguments, DataArguments, MatrixTrainingArguments)


@dataclass
class Recipe:
    """Everything that one run of a recipe was told.

    Attributes:
        model: Which model is trained.
        data: What on.
        training: How, the matrix loss included.
        given: The settings that were given, file and command line merged, by name.
        precision_note: What became of the mixed precision that the launch asks for, where it asks for one.
    """

    model: ModelArguments
    data: DataArguments
    training: MatrixTrainingArguments
    given: dict[str, Any]
    precision_note: str | None = None


def known_settings() -> frozenset[str]:
    """Return the name of every setting that a recipe has."""
    return frozenset(settings_of(GROUPS))


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
    launched = launched_precision()
    try:
        (model, data, training), given = parse_settings(
            GROUPS,
            argv,
            adjust=_adjusted,
            comma_lists=("lora_target_modules", "lora_modules_to_save"),
            assignments=("optim_args",),
            refused=FOREIGN,
        )
    except (ConfigurationError, MatrixLossConfigError):
        raise
    except (ValueError, ImportError) as error:  # what TrainingArguments raises for settings that do not fit
        raise ConfigurationError(" ".join(str(error).split())) from error
    return Recipe(model, data, training, given, _precision_note(training, given, launched))


def _precision_note(training: MatrixTrainingArguments, given: Container[str], launched: str) -> str | None:
    """What to say of the mixed precision that the launch asks for: where it is used though the recipe has none, or is not."""
    used = "bf16" if training.bf16 else "fp16" if training.fp16 else "no"
    if (used, launched) == ("no", "fp8"):
        return None  # the trainer refuses it
    if used != launched:
        return unused_precision_text(
            "the recipe has " + (f"{launched}: false" if used == "no" else f"{used}: true"), launched
        )
    return None if used == "no" or used in given else f"mixed precision: {used}, as the launch asks"


def _adjusted(settings: Namespace, given: frozenset[str]) -> list[str]:
    """The accumulation that `total_batch_size` asks for; a precision that was given has the say over the launch's."""
    raise_all(
        [f"{name} must be at least 1, got {n}" for name in _COUNTS if (n := getattr(settings, name)) < 1]
    )
    launched = launched_precision()
    if launched in given and not getattr(settings, launched, False):
        leave_out_launched_precision()
    if settings.total_batch_size is None:
        return []
    return _accumulation(settings, given="gradient_accumulation_steps" in given)


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
