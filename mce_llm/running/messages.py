"""What error messages of all programs share: hints, causes, and several problems in one."""

from __future__ import annotations

import difflib
import json
import pickle
from collections.abc import Iterable
from pathlib import Path

from mce_llm.errors import MceLlmError
from mce_llm.running.hub import hub_problem


class ConfigurationError(MceLlmError, ValueError):
    """Settings that cannot be used; the message lists all that are wrong."""

    one_a_line = True


def raise_all(problems: list[str], error: type[MceLlmError] = ConfigurationError) -> None:
    """Raise one error for all problems, if there are any.

    Args:
        problems: What is wrong, one text each.
        error: What to raise; its `one_a_line` says how several problems are laid out.

    Raises:
        MceLlmError: Of the type `error`, where there is a problem.
    """
    if len(problems) > 1 and error.one_a_line:
        raise error("".join(f"\n- {problem}" for problem in problems))
    if problems:
        raise error("; ".join(problems))


def nearest_hint(name: str, options: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest option, or an empty string when none is close."""
    known = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {known[close[0]]!r}?)" if close else ""


def counted(number: int, noun: str) -> str:
    """A number and what is counted, in the singular for one: `1 file`, `2,000 files`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def cause(error: BaseException) -> str:
    """Return type and text of another library's error on one line: of the innermost, where errors are chained."""
    error = _innermost(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:299] + '…'}".rstrip(":. ")


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def loading_problem(error: Exception) -> str:
    """Say why files of a model or tokenizer cannot be loaded; in our words where the libraries' advice is to run code."""
    if isinstance(_innermost(error), pickle.UnpicklingError):
        return (
            "its pickled weights hold more than tensors, and could run code if they were loaded; get the same model "
            "as .safetensors"
        )
    if "custom code" in str(error):
        return (
            "it comes with Python code of its own, which is not run; read that code first, and then set "
            "trust_remote_code: true"
        )
    return cause(error)


def model_path_problem(name: str, revision: str | None = None) -> str | None:
    """Say why a name is no model to load: a path that leads to none, or a hub id where the hub cannot be reached.

    Args:
        name: A directory or a hub id.
        revision: A branch, tag or commit of a hub id.

    Returns:
        The problem, or None where loading may be tried.
    """
    path = Path(name).expanduser()
    if revision is not None and path.exists():
        return f"{name} is on this machine, where there is no revision {revision!r}; give a hub id, or leave the revision out"
    if path.is_dir():
        if (path / "config.json").is_file():
            return _shard_problem(path)
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:6]) or "nothing"
        return (
            f"{name} is not a model: it has no config.json (found: {inside}); give the directory that "
            "save_pretrained wrote, or a checkpoint-N inside it"
        )
    if path.exists():
        return f"{name} is a file; give the directory of a model, or a hub id"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"{name}: there is no such directory"
    return hub_problem(name, revision=revision)


def _shard_problem(folder: Path) -> str | None:
    """An index of weight shards may name files beside it and nothing else."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{index} is no index of weight shards: {cause(error)}"
        outside = sorted(str(n) for n in names if not isinstance(n, str) or Path(n).name != n or "\\" in n)
        if outside:
            return f"{index} names {outside[0]!r}, which is not a file in its own folder; the checkpoint is not to be trusted"
    return None
