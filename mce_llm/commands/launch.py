"""`mce-llm finetune`: `accelerate launch` with the fine-tuning recipe, for one command to remember.

What `accelerate launch` has an option for goes to the launcher, what the recipe has a setting for goes to the recipe, and
what neither knows is refused before anything starts.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.commands.launch import launch_command_parser

from mce_llm.finetuning.configuration import known_settings
from mce_llm.running.installation import named_file, shipped_file, shipped_folder
from mce_llm.running.messages import nearest_hint
from mce_llm.running.settings import ConfigurationError

# Not for users of a recipe: they would launch something else.
_NOT_OURS = frozenset({"module", "no_python", "help", "h", "m"})


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
                problems.append(f"unknown setting or launcher option {name!r}{hint}")
                current = []
        elif current is None:
            problems.append(f"unexpected word {word!r} on the command line")
            continue
        current.append(word)
    if problems:
        raise ConfigurationError("; ".join(problems))
    return Words(tuple(_with_shipped_file(told[True])), tuple(told[False]))


def launch_command(config: str, words: Sequence[str]) -> list[str]:
    """Return the `accelerate launch` command of a recipe.

    Args:
        config: A file, or the name of a recipe that mce-llm brings.
        words: Options of `accelerate launch` and settings of the recipe.

    Raises:
        ConfigurationError: There is no such recipe, or words that nobody knows.
    """
    told = split_words(words)
    script = str(shipped_file("recipes/finetune.py"))
    # quiet: the script has said in one line what was wrong, and a traceback of the launcher would hide it.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *told.launcher]
    return [*launcher, script, "--config", recipe_file(config), *told.settings]


def run_launch(config: str, words: Sequence[str]) -> None:
    """Become the launcher of a recipe: its signals and its exit code are those of this command.

    Args:
        config: A file, or the name of a recipe that mce-llm brings.
        words: Options of `accelerate launch` and settings of the recipe.

    Raises:
        ConfigurationError: There is no such recipe, or words that nobody knows.
    """
    command = launch_command(config, words)
    shown = ["accelerate", "launch", *command[3:]]
    shown[shown.index(str(shipped_file("recipes/finetune.py")))] = named_file("recipes/finetune.py")
    print(f"$ {shlex.join(shown)}", flush=True)
    os.execv(command[0], command)


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
