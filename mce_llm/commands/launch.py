"""`mce-llm finetune`: `accelerate launch` with the fine-tuning recipe, for one command to remember.

What `accelerate launch` has an option for goes to the launcher, what the recipe has a setting for goes to the recipe, and
what neither knows is refused before anything starts.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from mce_llm.running.installation import named_file, shipped_file
from mce_llm.running.launch_options import (
    file_or_shipped,
    launcher_options,
    with_defaults,
    with_shipped_file,
)
from mce_llm.running.messages import ConfigurationError, nearest_hint
from mce_llm.running.visible_text import print_visible


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
    return file_or_shipped(name, "recipes", "configuration file", "recipe")


def split_words(words: Sequence[str]) -> Words:
    """Tell the launcher's options from the recipe's settings.

    Args:
        words: What stood after the recipe's name.

    Returns:
        Both. A name that both know (gradient_accumulation_steps, debug) is the recipe's.

    Raises:
        ConfigurationError: A word that neither knows, with the nearest name.
    """
    # Here: it takes seconds, and a recipe that does not exist is said before.
    from mce_llm.finetuning.configuration import known_settings
    from mce_llm.finetuning.foreign_names import FOREIGN

    settings = known_settings()
    options = launcher_options()
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
    return Words(tuple(with_shipped_file(told[True])), tuple(told[False]))


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
    return [*with_defaults(list(told.launcher)), script, "--config", recipe, *told.settings]


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
    from mce_llm.running.launcher import launch  # here: it brings torch.distributed, and signal handlers

    given = launch_words(config, words)
    shown = ["accelerate", "launch", *given]
    shown[shown.index(str(shipped_file("recipes/finetune.py")))] = named_file("recipes/finetune.py")
    print_visible(f"$ {shlex.join(shown)}")
    return launch(given)
