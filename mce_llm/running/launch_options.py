"""The options of `accelerate launch`: which there are, the launch files that come along, and what is chosen where none says it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from os.path import expanduser
from pathlib import Path

from mce_llm.running.installation import shipped_folder
from mce_llm.running.messages import ConfigurationError, counted, nearest_hint
from mce_llm.running.yaml_text import load_yaml

# Not for users of a recipe: they would launch something else.
_NOT_OURS = frozenset({"module", "no_python", "help", "h", "m"})

# What says which engine is launched; accelerate takes one of them.
_ENGINE_OPTIONS = {"multi_gpu", "cpu", "use_cpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm"}
_THREADS = "num_cpu_threads_per_process"


def launcher_options() -> frozenset[str]:
    """Return the name of every option of `accelerate launch` that a script can be launched with."""
    from accelerate.commands.launch import launch_command_parser  # here: it takes seconds

    return (
        frozenset(
            flag.lstrip("-").replace("-", "_")
            for action in launch_command_parser()._actions
            for flag in action.option_strings
        )
        - _NOT_OURS
    )


def misplaced_values(words: Sequence[str]) -> list[str]:
    """Find options without the value that they need, and words that are the value of no option.

    `accelerate launch` would take such a word, as in `--cpu true`, for the script that it is to launch.

    Args:
        words: Options of the launcher, with `--name=value` as one word or two; names that it does not know are left alone.

    Returns:
        What is wrong, in words.
    """
    from accelerate.commands.launch import launch_command_parser  # here: it takes seconds

    switches = {
        flag.lstrip("-").replace("-", "_"): action.nargs == 0
        for action in launch_command_parser()._actions
        for flag in action.option_strings
    }
    problems = []
    waiting = after = ""  # the option that waits for its value, and the one before a word
    for word in [*words, "--"]:
        if not word.startswith("--"):
            if not waiting and switches.get(after) is not False:
                told = f"{after} is a switch and takes none" if after else "no option stands before it"
                problems.append(f"{word!r} is the value of no option: {told}")
            elif not waiting and after:
                problems.append(f"{word!r} is a second value of {after}, which takes one")
            waiting = ""
            continue
        if waiting:
            problems.append(f"{waiting} needs a value")
        name, equals, _ = word[2:].partition("=")
        after = name.replace("-", "_")
        waiting = "" if equals or switches.get(after) is not False else after
    return problems


def given_options(words: Sequence[str]) -> dict[str, str]:
    """Return what follows each option; of one without a value it is the next option, or nothing.

    Args:
        words: Options of the launcher, as `with_shipped_file` returns them.
    """
    return {word[2:].replace("-", "_"): after for word, after in pairwise([*words, ""])}


def with_defaults(words: Sequence[str], *, gpus: int | None = None, cores: int | None = None) -> list[str]:
    """Add the options that accelerate would choose by itself with a long warning, and the threads of programs on the CPU.

    Where a launch file has the say, named or that of `accelerate config`, the threads alone are added, which no such file
    tells. On accelerators other than CUDA nothing is.

    Args:
        words: Options of the launcher, as `with_shipped_file` returns them.
        gpus: GPUs to launch on; by default those that are seen.
        cores: CPU cores to launch on; by default those that this process may use.

    Raises:
        ConfigurationError: More processes than accelerate would start, or a launch file that cannot be read.
    """
    import torch

    words = with_default_file(words)
    given = given_options(words)
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type != "cuda" and "cpu" not in given:
        return words
    gpus = torch.cuda.device_count() if gpus is None else gpus
    if "cpu" in given or not gpus:
        words += _thread_words(words, usable_cores() if cores is None else cores)
    if "config_file" in given:
        return words
    # With --cpu accelerate starts one, however many GPUs there are.
    processes = given.get("num_processes", str(1 if "cpu" in given else max(1, gpus)))
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


def usable_cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _thread_words(words: Sequence[str], cores: int) -> list[str]:
    """The option that shares cores out between the processes of a launch, unless it is given or OMP_NUM_THREADS is set.

    Without it accelerate gives each process one thread. Beside GPUs that is left as it is: torch's own launcher does the
    same, and what needs more there, as Adam does on the CPU under DeepSpeed, heeds OMP_NUM_THREADS alone.
    """
    if _THREADS in given_options(words) or os.environ.get("OMP_NUM_THREADS"):
        return []
    here = (num_processes(words) or 1) // (_number(words, "num_machines") or 1)
    return [f"--{_THREADS}", str(max(1, cores // max(1, here)))]


def with_shipped_file(words: Sequence[str]) -> list[str]:
    """Put the path of a launch file that mce-llm brings in the place of its name: `--config_file zero3`.

    Args:
        words: Options of the launcher.

    Returns:
        The same, with `--name=value` as two words.

    Raises:
        ConfigurationError: There is no such file.
    """
    given = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for at, word in enumerate(given[:-1]):
        if word in ("--config_file", "--config-file"):
            given[at + 1] = file_or_shipped(given[at + 1], "recipes/accelerate", "launch file", "launch file")
    return given


def with_default_file(words: Sequence[str]) -> list[str]:
    """Name the launch file that accelerate would read unasked: that of `accelerate config`, unless a file or `--cpu` is given.

    Args:
        words: Options of the launcher, as `with_shipped_file` returns them.
    """
    from accelerate.commands.config.config_args import default_config_file  # here: it takes seconds

    given = given_options(words)
    if "config_file" in given or "cpu" in given or not Path(default_config_file).is_file():
        return list(words)
    return ["--config_file", default_config_file, *words]


def num_processes(words: Sequence[str]) -> int | None:
    """How many processes launcher options ask for: by themselves, or by their launch file; None where neither says.

    Args:
        words: Options of the launcher, as `with_default_file` returns them.

    Raises:
        ConfigurationError: The launch file cannot be read, or the number is none.
    """
    return _number(words, "num_processes")


def _number(words: Sequence[str], name: str) -> int | None:
    """What launcher options, or their launch file, say of a number; None where neither does."""
    given = given_options(words)
    found: object = given.get(name)
    if found is None and "config_file" in given:
        path = Path(given["config_file"])
        try:
            content = load_yaml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from error
        found = content.get(name) if isinstance(content, dict) else None
    if found is None:
        return None
    if not str(found).isdecimal() or int(str(found)) < 1:
        raise ConfigurationError(f"{name} must be a positive number, got {found!r}")
    return int(str(found))


def file_or_shipped(name: str, folder: str, kind: str, shipped_kind: str) -> str:
    """Return the path of a YAML file, or of one that mce-llm brings under that name.

    Args:
        name: A file, or the name of one that comes along.
        folder: Where those lie, such as `recipes/accelerate`.
        kind: What the file is, for messages.
        shipped_kind: What those that come along are.

    Raises:
        ConfigurationError: There is neither.
    """
    if (path := Path(expanduser(name))).is_file():
        return str(path)
    known = {path.stem: path for path in sorted((shipped_folder() / folder).glob("*.yaml"))}
    stem = name.removeprefix(f"{folder}/").removesuffix(".yaml")
    if stem in known:
        return str(known[stem])
    raise ConfigurationError(
        f"no {kind} {name!r}, and no {shipped_kind} of that name comes with mce-llm{nearest_hint(stem, known)} "
        f"({', '.join(known)})"
    )
