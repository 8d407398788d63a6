"""One evaluation from the questions to the summary, on one process or on many, begun or gone on with.

Each process loads the model and answers its share of the questions that are still open, writing every answer as soon as it is
judged. The command lines (`gsm8k`, `math`) only choose the task.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from mce_llm.data import PromptTemplate
from mce_llm.eval.engines.backends import Backend, TransformersBackend, open_backend
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.fingerprints import fingerprint
from mce_llm.eval.items import Item
from mce_llm.eval.output_directory import OutputDirectory
from mce_llm.eval.presets import prompt_identity
from mce_llm.eval.results import PACKAGES, Summary, print_summary, summarize
from mce_llm.eval.settings import EvaluationConfig
from mce_llm.eval.shots import load_shots
from mce_llm.eval.tasks import Task
from mce_llm.running.installation import installed_versions
from mce_llm.running.launching import run_script
from mce_llm.running.processes import join_processes
from mce_llm.running.settings import parse_settings


def evaluate_task(
    task: Task,
    config: EvaluationConfig,
    model: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Summary:
    """Answer every question, judge the answers and write the results.

    Where the output directory holds answers of the same model under the same conditions, only the missing ones are
    generated. With several processes each must call this; each gets the summary.

    Args:
        task: What to ask.
        config: The options.
        model: Use this model instead of loading `config.model`, which then only names it. Its dtype counts.
        tokenizer: Its tokenizer; given exactly where `model` is.

    Returns:
        The summary that was written to `summary.json`.

    Raises:
        EvaluationError: If the model or the output directory cannot be used.
        DataError: If the questions cannot be used.
        LaunchError: If processes that were launched together each work alone.
    """
    if (model is None) != (tokenizer is None):
        raise EvaluationError("pass model and tokenizer together, or neither of them")
    if model is not None and config.backend != "hf":
        raise EvaluationError("a model that is in memory already runs in transformers; use backend hf")
    task.check_ready()
    state = join_processes()
    output = OutputDirectory(config.output)
    output.check_place()
    known = {"task": task.name, "settings": config.recorded()}
    if not config.overwrite:
        output.check_same(known)  # before the model is loaded, as far as it goes
    examples = task.load(config.data, config.split, config.limit)
    template = config.template(task.name, load_shots(config.shots) if config.shots else None)
    if model is None or tokenizer is None:
        backend = open_backend(config, state)
    else:
        backend = TransformersBackend(model, tokenizer, config.batching)
    template.check(backend.tokenizer)
    ends = list(dict.fromkeys([*template.end_token_ids(backend.tokenizer), *backend.end_token_ids]))
    record = known | _identity(config, template, backend, examples, ends, state)
    goes_on = not config.overwrite and output.check_same(record)
    if goes_on and (before := output.finished()) is not None:
        return Summary.from_json(before)
    state.wait_for_everyone()  # no process checks the directory after the main one has begun to write
    with output.alone() if state.is_main_process else nullcontext():
        if state.is_main_process:
            output.prepare(record, fresh=not goes_on)
        state.wait_for_everyone()
        kept = output.done()
        state.wait_for_everyone()  # no process writes before all have read
        started = time.perf_counter()
        _answer_share(task, config, backend, template, examples, ends, kept, output, state)
        state.wait_for_everyone()
        settings = {
            key: getattr(config, key)
            for key in ("model", "data", "prompt", "max_new_tokens", "backend", "batch_size")
        } | {
            "split": config.split_name,
            "dtype": backend.dtype,
            "batching": backend.batching,
            "processes": state.num_processes,
            "hashes": record["hashes"],
            "continued": len(kept),
        }
        seconds = time.perf_counter() - started
        return _finish(task, config, output, len(examples), seconds, kept, settings, state)


def _identity(
    config: EvaluationConfig,
    template: PromptTemplate,
    backend: Backend,
    examples: Dataset,
    ends: Sequence[int],
    state: PartialState,
) -> dict[str, Any]:
    """Return what the answers depend on, in full and as hashes; the same on every process."""
    prompt = prompt_identity(template, backend.tokenizer)
    decoding = {
        **asdict(config.decoding(template.stop)),
        "stop": list(template.stop),
        "end_token_ids": list(ends),
        "backend": config.backend,
    }
    hashes: list[Any] = [None]
    if state.is_main_process:
        hashes[0] = {
            "prompt": fingerprint(prompt),
            "data": fingerprint([[row["question"], row["answer"]] for row in examples]),
            "decoding": fingerprint(decoding),
            "model": backend.fingerprint(),
        }
    broadcast_object_list(hashes)
    return {
        "dtype": backend.dtype,
        "prompt": prompt,
        "decoding": decoding,
        "hashes": hashes[0],
        "versions": installed_versions(PACKAGES),
    }


def _answer_share(
    task: Task,
    config: EvaluationConfig,
    backend: Backend,
    template: PromptTemplate,
    examples: Dataset,
    ends: Sequence[int],
    kept: Sequence[Item],
    output: OutputDirectory,
    state: PartialState,
) -> None:
    """Answer every `num_processes`-th question that is open, writing each item as soon as it is judged."""
    done = {(item["index"], item["sample"]) for item in kept}
    rows = examples.to_list()
    open_questions = [
        index
        for index in range(len(rows))
        if any((index, sample) not in done for sample in range(config.num_samples))
    ]
    share = open_questions[state.process_index :: state.num_processes]
    total = sum((index, sample) not in done for index in share for sample in range(config.num_samples))
    answers = backend.answers(
        [
            template.encode_prompt(backend.tokenizer, rows[index]["question"], evaluation=True)
            for index in share
        ],
        config.decoding(template.stop),
        indices=share,
        done=done,
        end_token_ids=ends,
        batch_size=config.batch_size,
    )
    alone = state.num_processes == 1
    correct, count = (sum(item["correct"] for item in kept), len(kept)) if alone else (0, 0)
    cut = sum(item["finished"] == "length" for item in kept) if alone else 0
    bar = tqdm(
        total=total + count,
        initial=count,
        desc=task.title if alone else f"{task.title}, process 1 of {state.num_processes}",
        unit="answer",
        disable=not state.is_main_process,
    )
    with bar, output.open_rank_file(state.process_index) as file:
        for answer in answers:
            item = task.judge(rows[answer.index], answer)
            output.write_item(file, item)
            correct, count, cut = correct + item["correct"], count + 1, cut + (item["finished"] == "length")
            bar.set_postfix(accuracy=f"{correct / count:.1%}", cut_off=f"{cut / count:.1%}", refresh=False)
            bar.update()


def _finish(
    task: Task,
    config: EvaluationConfig,
    output: OutputDirectory,
    n: int,
    seconds: float,
    kept: Sequence[Item],
    settings: dict[str, Any],
    state: PartialState,
) -> Summary:
    """Merge on the main process, and give the summary, or what went wrong, to every process."""
    result: list[Summary | EvaluationError | None] = [None]
    if state.is_main_process:
        try:
            items = output.merge(n, config.num_samples)
            summary = summarize(task, items, seconds, sum(item["new_tokens"] for item in kept), settings)
            output.write_summary(asdict(summary))
            result[0] = summary
        except EvaluationError as error:
            result[0] = error
    broadcast_object_list(result)
    if isinstance(result[0], EvaluationError):
        raise result[0]
    assert result[0] is not None
    return result[0]


def run_command_line(
    task: Task, options_class: type[EvaluationConfig], arguments: Sequence[str] | None
) -> int:
    """Run an evaluation from the command line, `--config FILE.yaml` and overrides as in every script.

    Args:
        task: What to ask.
        options_class: The options, with the task's defaults.
        arguments: The command line; by default that of the process.

    Returns:
        The exit code: 0, 2 for a problem that the message explains, 130 after Ctrl-C, 143 after SIGTERM or SIGUSR1.
    """
    output = Path()

    def main(argv: list[str] | None) -> None:
        nonlocal output
        (options,), _ = parse_settings(
            (options_class,),
            sys.argv[1:] if argv is None else argv,
            description=f"Accuracy of a language model on {task.title}.",
        )
        output = Path(options.output)
        summary = evaluate_task(task, options)
        if PartialState().is_main_process:
            print_summary(summary, task.title, output)

    return run_script(
        main,
        None if arguments is None else list(arguments),
        goes_on_from=lambda: f"the {OutputDirectory(output).written()} answers that are kept in {output}",
        needs_less_memory="use a smaller batch_size: the same command goes on with the answers that are kept",
    )
