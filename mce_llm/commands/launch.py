"""`mce-llm finetune`: `accelerate launch` with the fine-tuning recipe, for one command to remember.

What `accelerate launch` has an option for goes to the launcher, what the recipe has a setting for goes to the recipe, and
what neither knows is refused before anything starts.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mce_llm.running.installation import named_file, shipped_file, shipped_folder
from mce_llm.running.messages import ConfigurationError, counted, nearest_hint

# Not for users of a recipe: they would launch something else.
_NOT_OURS = frozenset({"module", "no_python", "help", "h", "m"})

# What says which engine is launched; accelerate takes one of them.
_ENGINE_OPTIONS = {"multi_gpu", "cpu", "use_cpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm"}


@dataclass(frozen=True)
class Words:
    """A command line, told apart.

    Attributes:
        launcher: Options of `accelerate launch`.
        settings: Settings of the recipe.
    """

    launcher: tuple[str, ...]
    settings: tuple[str, ...]


def recipe_file(name: str) -> str:
    """Return the path of a recipe's YAML file.

    Args:
        name: A file, or the name of a recipe that mce-llm brings, such as llemma7b_metamath_mce.

    Raises:
        ConfigurationError: There is neither.
    """
    return _file_or_shipped(name, "recipes", "configuration file", "recipe")


def split_words(words: Sequence[str]) -> Words:
    """Tell the launcher's options from the recipe's settings.

    Args:
        words: What stood after the recipe's name.

    Returns:
        Both. A name that both know (gradient_accumulation_steps, debug) is the recipe's.

    Raises:
        ConfigurationError: A word that neither knows, with the nearest name.
    """
    # Here: they take seconds, and a recipe that does not exist is said before.
    from accelerate.commands.launch import launch_command_parser

    from mce_llm.finetuning.configuration import known_settings
    from mce_llm.finetuning.foreign_names import FOREIGN

    settings = known_settings()
    options = {
        flag.lstrip("-").replace("-", "_")
        for action in launch_command_parser()._actions
        for flag in action.option_strings
    } - _NOT_OURS
    told: dict[bool, list[str]] = {True: [], False: []}
    current: list[str] | None = None
    problems = []
    for word in words:
        if word.startswith("--"):
            name = word[2:].split("=", 1)[0]
            option = name.replace("-", "_")
            if name in settings or name == "config":
                current = told[False]
            elif option in options:
                current = told[True]
            else:
                hint = nearest_hint(option, {*settings, *options})
                problems.append(
                    f"{option} is no setting here: {FOREIGN[option]}"
                    if option in FOREIGN
                    else f"unknown setting or launcher option {name!r}{hint}"
                )
                current = []
        elif current is None:
            problems.append(f"unexpected word {word!r} on the command line")
            continue
        current.append(word)
    if problems:
        raise ConfigurationError("; ".join(problems))
    return Words(tuple(_with_shipped_file(told[True])), tuple(told[False]))


def launch_words(config: str, words: Sequence[str]) -> list[str]:
    """Return what `accelerate launch` is given to run a recipe.

    Args:
        config: A file, or the name of a recipe that mce-llm brings.
        words: Options of `accelerate launch` and settings of the recipe.

    Raises:
        ConfigurationError: There is no such recipe, words that nobody knows, or more processes than accelerate would
            start.
    """
    recipe = recipe_file(config)
    told = split_words(words)
    script = str(shipped_file("recipes/finetune.py"))
    return [*_with_defaults(list(told.launcher)), script, "--config", recipe, *told.settings]


def run_launch(config: str, words: Sequence[str]) -> int:
    """Launch a recipe, and wait for it.

    Args:
        config: A file, or the name of a recipe that mce-llm brings.
        words: Options of `accelerate launch` and settings of the recipe.

    Returns:
        The recipe's exit code.

    Raises:
        ConfigurationError: There is no such recipe, words that nobody knows, or more processes than accelerate would
            start.
    """
    from mce_llm.commands.launcher import (
        launch,  # here: it brings torch.distributed, and changes signal handlers
    )

    given = launch_words(config, words)
    shown = ["accelerate", "launch", *given]
    shown[shown.index(str(shipped_file("recipes/finetune.py")))] = named_file("recipes/finetune.py")
    print(f"$ {shlex.join(shown)}", flush=True)
    return launch(given)


def _with_defaults(words: list[str]) -> list[str]:
    """The launcher's options, as `split_words` returns them, with those that it would choose with a long warning.

    Nothing is added where a launch file or `accelerate config` has the say, or on accelerators other than CUDA.
    """
    import torch
    from accelerate.commands.config.config_args import default_config_file

    # What follows each option; of one without a value it is the next option, which nothing here asks for.
    given = {word[2:].replace("-", "_"): after for word, after in pairwise([*words, ""])}
    accelerator = torch.accelerator.current_accelerator()
    if "config_file" in given or Path(default_config_file).is_file():
        return words
    if accelerator is not None and accelerator.type != "cuda":
        return words
    gpus = torch.cuda.device_count()
    processes = given.get("num_processes", str(max(1, gpus)))
    several = []
    if processes.isdecimal() and processes != "1" and _ENGINE_OPTIONS.isdisjoint(given):
        if gpus < 2:
            raise ConfigurationError(
                f"--num_processes {processes} on a machine with {counted(gpus, 'GPU')}: accelerate would start one process and say "
                "nothing; --config_file cpu starts several on the CPU"
            )
        several = ["--multi_gpu"]
    usual = {
        "num_processes": processes,
        "num_machines": "1",
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    added = [part for name, value in usual.items() if name not in given for part in (f"--{name}", value)]
    return [*several, *added, *words]


def _with_shipped_file(words: list[str]) -> list[str]:
    """The launcher's options with `--config_file zero3` as the path of the launch file that mce-llm brings."""
    given = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for at, word in enumerate(given[:-1]):
        if word in ("--config_file", "--config-file"):
            given[at + 1] = _file_or_shipped(
                given[at + 1], "recipes/accelerate", "launch file", "launch file"
            )
    return given


def _file_or_shipped(name: str, folder: str, kind: str, shipped_kind: str) -> str:
    if Path(name).expanduser().is_file():
        return name
    known = {path.stem: path for path in sorted((shipped_folder() / folder).glob("*.yaml"))}
    stem = name.removeprefix(f"{folder}/").removesuffix(".yaml")
    if stem in known:
        return str(known[stem])
    raise ConfigurationError(
        f"no {kind} {name!r}, and no {shipped_kind} of that name comes with mce-llm{nearest_hint(stem, known)} "
        f"({', '.join(known)})"
    )
