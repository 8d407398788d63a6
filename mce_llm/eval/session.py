"""What every evaluation does around its work: the questions, the folder that is begun or gone on with, many processes as one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mce_llm.data import PromptTemplate
from mce_llm.data.errors import problem_list
from mce_llm.eval.asking import QuestionsConfig
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.items import Item
from mce_llm.eval.output_directory import UNUSED, OutputDirectory
from mce_llm.eval.tasks import Questions, Task
from mce_llm.eval.trained_prompt import with_trained_prompt
from mce_llm.running.launching import run_script
from mce_llm.running.messages import counted
from mce_llm.running.processes import say
from mce_llm.running.settings import parse_settings

_Config = TypeVar("_Config", bound=QuestionsConfig)
_Result = TypeVar("_Result")
_SHOWN = 5  # of the records that are left out


@dataclass(frozen=True)
class Asked(Generic[_Config]):
    """What is asked, before a model is loaded.

    Attributes:
        config: The options, with the prompt that `auto` stands for.
        known: What `config.json` records that is known already.
        questions: With their references.
        template: How they are put to the model.
    """

    config: _Config
    known: dict[str, Any]
    questions: Questions
    template: PromptTemplate


def load_questions(task: Task, config: _Config, output: OutputDirectory, *, on_hub: bool) -> Asked[_Config]:
    """Load the questions, after a look at the output directory, and say what is to be known of them.

    Args:
        task: What to ask.
        config: The options.
        output: Where results go.
        on_hub: Whether a model that is no directory may be a hub id; not for one in memory.

    Raises:
        EvaluationError: If the output directory cannot be used, or the prompt is not known.
        DataError: If the questions cannot be used.
    """
    output.check_place()
    config, notes = with_trained_prompt(config, on_hub=on_hub)
    known = {"task": task.name, "settings": config.recorded()}
    if not config.overwrite:
        output.check_same(known)  # before the model is loaded, as far as it goes
    questions = task.load(
        config.data,
        config.split,
        config.limit,
        name=config.data_name,
        columns=config.column_mapping,
        unreadable=config.unreadable_references,
    )
    if questions.unused:
        known[UNUSED] = list(questions.unused)
    template = config.template(task.name)
    for note in (*notes, *questions.notes):
        say(note)
    say_skipped(questions.skipped, "for references that cannot be judged by")
    return Asked(config, known, questions, template)


def say_skipped(skipped: tuple[str, ...], why: str) -> None:
    """Warn of the records that are left out.

    Args:
        skipped: Where each is from, and what is wrong with it.
        why: The reason that they share.
    """
    if skipped:
        say(
            f"warning: left out, {why}: {counted(len(skipped), 'question')}"
            f"{problem_list(skipped[:_SHOWN], len(skipped))}"
        )


def run_session(
    output: OutputDirectory,
    record: Mapping[str, Any],
    state: PartialState,
    *,
    overwrite: bool,
    work: Callable[[list[Item]], None],
    finish: Callable[[float, list[Item]], dict[str, Any]],
) -> dict[str, Any]:
    """Begin an evaluation in its folder, or go on with it, and write its summary.

    Every process has to call this, with the same record.

    Args:
        output: The folder.
        record: What `config.json` is to hold.
        state: This process.
        overwrite: Remove what is there and begin anew.
        work: Given the items that earlier launches left, writes this process's share of the others.
        finish: On the main process, after all have done so: given the seconds of `work` and the items that were there
            before, joins the items and returns the summary.

    Returns:
        The content of `summary.json`, on every process; that which is there where the evaluation was finished before.

    Raises:
        EvaluationError: If the folder holds other results or cannot be written.
    """
    goes_on = not overwrite and output.check_same(record)
    if goes_on and (before := output.finished()) is not None:
        return before
    state.wait_for_everyone()  # no process checks the directory after the main one has begun to write
    with output.alone() if state.is_main_process else nullcontext():
        if state.is_main_process:
            output.prepare(record, fresh=not goes_on)
        state.wait_for_everyone()
        kept = output.done()
        state.wait_for_everyone()  # no process writes before all have read
        started = time.perf_counter()
        work(kept)
        state.wait_for_everyone()
        seconds = time.perf_counter() - started

        def finished() -> dict[str, Any]:
            summary = finish(seconds, kept)
            output.write_summary(summary)
            return summary

        return from_main_process(state, finished)


def from_main_process(state: PartialState, make: Callable[[], _Result]) -> _Result:
    """Make something on the main process, and give it, or what went wrong, to every process.

    Args:
        state: This process.
        make: Makes it; its result can be pickled.

    Raises:
        EvaluationError: What `make` raised.
    """
    result: list[Any] = [None]
    if state.is_main_process:
        try:
            result[0] = make()
        except EvaluationError as error:
            result[0] = error
    broadcast_object_list(result)
    if isinstance(result[0], EvaluationError):
        raise result[0]
    made: _Result = result[0]
    return made


def run_evaluation_script(
    options_class: type[_Config],
    arguments: Sequence[str] | None,
    *,
    description: str,
    evaluate: Callable[[_Config], _Result],
    show: Callable[[_Result, _Config], None],
    kept: Callable[[Path], str],
    needs_less_memory: str,
) -> int:
    """Run an evaluation from the command line, `--config FILE.yaml` and overrides as in every script.

    Args:
        options_class: The options.
        arguments: The command line; by default that of the process.
        description: What `--help` says of the script.
        evaluate: Does it.
        show: Prints the summary; called on the main process.
        kept: What an interrupted run has left in a folder, in words.
        needs_less_memory: What to change where the memory of a device is not enough.

    Returns:
        The exit code: 0, 2 for a problem that the message explains, 130 after Ctrl-C, 143 after SIGTERM or SIGUSR1.
    """
    output = Path()

    def main(argv: list[str] | None) -> None:
        nonlocal output
        (options,), _ = parse_settings(
            (options_class,), sys.argv[1:] if argv is None else argv, description=description
        )
        output = Path(options.output)
        result = evaluate(options)
        if PartialState().is_main_process:
            show(result, options)

    return run_script(
        main,
        None if arguments is None else list(arguments),
        goes_on_from=lambda: f"{kept(output)} that are kept in {output}",
        needs_less_memory=needs_less_memory,
    )
