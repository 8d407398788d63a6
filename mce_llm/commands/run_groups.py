"""`--baseline A A2 … --arm B B2 …`: options that take as many folders as follow, so that a shell may expand a pattern there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from mce_llm.errors import MceLlmError

GROUPS = ("--baseline", "--arm")
_BETWEEN = "\0"  # cannot stand in a path


class RunGroupError(MceLlmError, ValueError):
    """Runs are given in a way that leaves open which belong together."""


class GroupedCommand(TyperCommand):
    """A command whose `--baseline` and `--arm` take every word up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the words of each group into one, which is what the parser can take."""
        joined: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            name, equals, first = word.partition("=")
            if word == "--":
                joined += [word, *rest]
                break
            if name not in GROUPS:
                joined.append(word)
                continue
            words = [first] if equals else []
            while rest and not rest[0].startswith("-"):
                words.append(rest.pop(0))
            if not words:
                ctx.fail(f"Option {name!r} requires an argument: the folders of evaluations")
            joined += [name, _BETWEEN.join(words)]
        return super().parse_args(ctx, joined)


def grouped_runs(
    folders: Sequence[Path] | None, baseline: Sequence[str] | None, arms: Sequence[str] | None
) -> tuple[list[Path], list[tuple[str | None, list[Path]]]] | None:
    """Take apart what `GroupedCommand` joined.

    Args:
        folders: What stands outside of the groups.
        baseline: The values of `--baseline`.
        arms: Those of `--arm`, each the words of one arm; the first may be its name.

    Returns:
        The folders of the baseline, and (name, folders) of each arm; None where no group is given.

    Raises:
        RunGroupError: A group is missing or given twice, an arm is a name alone, or folders stand outside.
    """
    if not baseline and not arms:
        return None
    if folders:
        raise RunGroupError(
            f"{', '.join(map(str, folders))}: beside --baseline and --arm no folders may stand; put each behind the one "
            "it belongs to"
        )
    if not baseline or not arms:
        have, lack = ("--baseline", "--arm B B2 …") if baseline else ("--arm", "--baseline A A2 …")
        raise RunGroupError(f"{have} needs {lack} beside it")
    if len(baseline) > 1:
        raise RunGroupError(
            "--baseline is given twice; there is one baseline, with a folder for each training seed"
        )
    found = []
    for words in (arm.split(_BETWEEN) for arm in arms):
        name = words[0] if _is_name(words[0]) else None
        rest = words[1:] if name is not None else words
        if not rest:
            raise RunGroupError(
                f"--arm {words[0]}: there is no such directory; give the folders of its evaluations"
            )
        found.append((name, [Path(word) for word in rest]))
    return [Path(word) for word in baseline[0].split(_BETWEEN)], found


def _is_name(word: str) -> bool:
    """Whether the first word of an arm is what it is called: no path, and no folder that is there."""
    return "/" not in word and not word.startswith((".", "~")) and not Path(word).exists()
