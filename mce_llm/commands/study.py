"""`mce-llm study`: checks a study, shows its plan or runs what is missing, and ends in the comparison."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mce_llm.commands.launch import split_words
from mce_llm.commands.study_display import StudyDisplay
from mce_llm.commands.study_plan import print_plan
from mce_llm.commands.study_report import report_study
from mce_llm.errors import MceLlmError
from mce_llm.running.folder import folder_held
from mce_llm.running.messages import ConfigurationError
from mce_llm.running.terminal import DataConsole
from mce_llm.running.visible_text import print_visible
from mce_llm.studies.checking import (
    Checked,
    checked,
    pending_preparations,
    write_definition,
)
from mce_llm.studies.errors import RunFailedError, StudyError
from mce_llm.studies.parts import Part
from mce_llm.studies.planning import check_weights
from mce_llm.studies.provenance import content_of
from mce_llm.studies.reading import Overrides, reading_of, study_file
from mce_llm.studies.results import Results
from mce_llm.studies.running import Stopped, prepare, run_study
from mce_llm.studies.slots import slots_of


def overrides_of(words: Sequence[str], output: Path | None = None) -> Overrides:
    """Tell apart what a command line changes in a study.

    Args:
        words: `--SETTING VALUE` for every arm's recipe, `--EVALUATION.OPTION VALUE`, and options of `accelerate launch`.
        output: The study's output folder.

    Raises:
        ConfigurationError: A word that nobody knows.
    """
    plain: list[str] = []
    evaluations: dict[str, dict[str, Any]] = {}
    current: list[str] = plain
    dotted: list[tuple[str, str, list[str]]] = []
    for word in words:
        name, equals, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if "." in name:
            evaluation, _, option = name.partition(".")
            current = [value] if equals else []
            dotted.append((evaluation, option, current))
            continue
        if name:
            current = plain
        current.append(word)
    for evaluation, option, values in dotted:
        if not values:
            raise ConfigurationError(f"--{evaluation}.{option} needs a value")
        evaluations.setdefault(evaluation, {})[option] = values[0] if len(values) == 1 else values
    told = split_words(plain)
    return Overrides(output, _named(told.settings), evaluations, told.launcher)


def part_given(only: str | None, seeds: str | None, evaluate: str | None) -> Part:
    """What of a study the command line asks for.

    Args:
        only: What `--only` is given; None where it is not there.
        seeds: The same of `--seeds`.
        evaluate: The same of `--evaluate`.

    Raises:
        StudyError: One is given and names nothing, or seeds that are no numbers.
    """
    return Part(
        tuple(names_given(only)), tuple(seeds_given(seeds)), tuple(names_given(evaluate, "--evaluate"))
    )


def names_given(text: str | None, option: str = "--only") -> list[str]:
    """The names of `--only ARM,…`; none where the option is not there.

    Args:
        text: What the option is given.
        option: Its name.

    Raises:
        StudyError: It is given, and names nothing, as with a shell variable that is not set.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not names:
        raise StudyError(f"{option} names nothing, got {text!r}; leave it out to run everything")
    return names


def seeds_given(text: str | None) -> list[int]:
    """The numbers of `--seeds 1,2`.

    Raises:
        StudyError: They are none.
    """
    names = names_given(text, "--seeds")
    if wrong := [name for name in names if not name.isdecimal()]:
        raise StudyError(
            f"--seeds takes numbers with commas between them, such as 1,2; got {', '.join(wrong)}"
        )
    return [int(name) for name in names]


def _named(words: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, list[str]] = {}
    current: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            current = settings[name] = [value] if equals else []
        else:
            current.append(word)
    if "config" in settings:
        raise ConfigurationError("--config is no option here: the study file names the recipes")
    # A switch without a value is true, as on a recipe's own command line.
    return {name: values[0] if len(values) == 1 else values or True for name, values in settings.items()}


def run_command(
    name: str,
    words: Sequence[str],
    *,
    output: Path | None,
    part: Part,
    jobs: int,
    plan: bool,
    allow_changes: bool,
) -> int:
    """Run a study, or show what it would run.

    Args:
        name: The study file, or the name of one that comes along.
        words: What else the command line says.
        output: Where everything goes; by default where the file says.
        part: What of it to run now.
        jobs: Runs at the same time.
        plan: Print the commands, and run none.
        allow_changes: Go on although recipes, settings or data have changed.

    Returns:
        The exit code: 0, that of a program that failed, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        StudyError: The study cannot be run, and nothing was started; or its folder cannot be written to.
    """
    console = DataConsole()
    slots = slots_of(jobs)
    reading = reading_of(study_file(name), overrides_of(words, output))

    def look(starts: bool) -> Checked:
        return checked(reading, slots[0], part=part, allow_changes=allow_changes, starts=starts)

    found = look(not plan)
    if plan:
        runs = part.runs(found.study, found.results)
        check_weights(runs)
        print_plan(found, runs, slots, console)
        return 0
    study = found.study
    with folder_held(study.output, error=StudyError), _writing(study.output):
        try:
            # An earlier start may have come to its end while this one was looking, and have added results.
            if Results(study.output, study.name).read() != found.results:
                found = look(True)
            if pending_preparations(study):
                prepare(study, StudyDisplay(console, found, [], jobs))
                content_of.cache_clear()
                found = look(True)
            runs = part.runs(study, found.results)
            check_weights(runs)
            write_definition(found)
            with StudyDisplay(console, found, runs, jobs) as display:
                run_study(found, runs, slots, display)
        except (RunFailedError, Stopped) as end:
            _report_what_there_is(found, console)
            failed = isinstance(end, RunFailedError)
            message = f"error: {end}" if failed else f"stopped by {end}; the same command goes on"
            print_visible(message, sys.stderr)
            return end.code
        report_study(study, Results(study.output, study.name).read(), console)
    return 0


def _report_what_there_is(found: Checked, console: DataConsole) -> None:
    """Have the tables tell of the runs that came to their end before one failed, or before this command was stopped."""
    study = found.study
    try:
        results = Results(study.output, study.name).read()
        if results != found.results:
            report_study(study, results, console, tables_too=False)
    except (MceLlmError, OSError) as error:  # what ended the study is what has to be said
        print_visible(f"note: the tables tell of the runs before these: {error}", sys.stderr)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say which file could not be written, such as on a full disk."""
    try:
        yield
    except BrokenPipeError:  # who reads this command's output has left
        raise
    except OSError as error:
        where = f"{folder}: {error.filename}" if error.filename else f"{folder}"
        raise StudyError(
            f"cannot write to {where}: {error.strerror or error}; the same command goes on once it can be written to"
        ) from error
