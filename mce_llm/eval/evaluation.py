"""One evaluation from the questions to the summary, on one process or on many, begun or gone on with.

Each process loads the model and answers its share of the questions that are still open, writing every answer as soon as it is
judged. The command lines (`gsm8k`, `math`) only choose the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from mce_llm.data import PromptTemplate
from mce_llm.eval.data_titles import data_title
from mce_llm.eval.dtype_hints import precision_hints
from mce_llm.eval.engines.backends import Backend, TransformersBackend, open_backend
from mce_llm.eval.engines.decoding import special_tags
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.fingerprints import fingerprint
from mce_llm.eval.items import Item
from mce_llm.eval.judging.reasoning import opens_thought
from mce_llm.eval.output_directory import OutputDirectory
from mce_llm.eval.presets import check_prompt, prompt_identity
from mce_llm.eval.results import PACKAGES, Summary, print_summary, summarize
from mce_llm.eval.session import from_main_process, load_questions, run_evaluation_script, run_session
from mce_llm.eval.settings import EvaluationConfig
from mce_llm.eval.tasks import Task
from mce_llm.eval.wording import accuracy_text, share_text
from mce_llm.running.installation import installed_versions
from mce_llm.running.processes import join_processes, say
from mce_llm.running.visible_text import visible

_PROMPT_END = 40  # tokens of a prompt in which an opening tag is looked for


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
    asked = load_questions(task, config, output, on_hub=model is None)
    config, questions, template = asked.config, asked.questions, asked.template
    examples = questions.rows
    if model is None or tokenizer is None:
        backend = open_backend(config, state)
        if state.is_main_process:
            for hint in precision_hints(config, backend.dtype, state.device):
                say(hint)
    else:
        backend = TransformersBackend(model, tokenizer, config.batching)
    check_prompt(template, backend.tokenizer)
    known_tags = special_tags(backend.tokenizer)
    if lost := [
        text
        for token, text in special_tags(backend.tokenizer, config.thinking).items()
        if token not in known_tags
    ]:
        raise EvaluationError(
            f"thinking_tags: {', '.join(lost)} are special tokens of this tokenizer, which answers are decoded without, so "
            "that they could not be seen"
        )
    ends = list(dict.fromkeys([*template.end_token_ids(backend.tokenizer), *backend.end_token_ids]))
    record = asked.known | _identity(config, template, backend, examples, ends, state)
    if questions.skipped:
        record |= {"skipped": list(questions.skipped)}

    def finish(seconds: float, kept: list[Item]) -> dict[str, Any]:
        items = output.merge(len(examples), config.num_samples)
        settings = {
            key: getattr(config, key) for key in ("model", "data", "prompt", "max_new_tokens", "backend")
        } | {
            "batch_size": config.questions_at_a_time,
            "split": config.split_name,
            "dtype": backend.dtype,
            "batching": backend.batching,
            "processes": state.num_processes,
            "hashes": record["hashes"],
            "continued": len(kept),
            "skipped": len(questions.skipped),
        }
        before = sum(item["new_tokens"] for item in kept)
        return asdict(summarize(task, items, seconds - backend.start_seconds, before, settings))

    return Summary.from_json(
        run_session(
            output,
            record,
            state,
            overwrite=config.overwrite,
            work=lambda kept: _answer_share(
                task, config, backend, template, examples, ends, kept, output, state
            ),
            finish=finish,
        )
    )


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
    hashes = from_main_process(
        state,
        lambda: {
            "prompt": fingerprint(prompt),
            "data": fingerprint([[row["question"], row["answer"]] for row in examples]),
            "decoding": fingerprint(decoding),
            "model": backend.fingerprint(),
        },
    )
    return {
        "dtype": backend.dtype,
        "prompt": prompt,
        "decoding": decoding,
        "hashes": hashes,
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
    prompts = {
        index: template.encode_prompt(backend.tokenizer, rows[index]["question"], evaluation=True)
        for index in share
    }
    answers = backend.answers(
        [prompts[index] for index in share],
        config.decoding(template.stop),
        indices=share,
        done=done,
        end_token_ids=ends,
        batch_size=config.questions_at_a_time,
    )
    alone = state.num_processes == 1
    correct, count = (sum(item["correct"] for item in kept), len(kept)) if alone else (0, 0)
    cut = sum(item["finished"] == "length" for item in kept) if alone else 0
    title = visible(data_title(config.recorded(), task.name), one_line=True)
    bar = tqdm(
        total=total + count,
        initial=count,
        desc=title if alone else f"{title}, process 1 of {state.num_processes}",
        unit="answer",
        disable=not state.is_main_process,
    )
    with bar, output.open_rank_file(state.process_index) as file:
        for answer in answers:
            end = backend.tokenizer.decode(prompts[answer.index][-_PROMPT_END:], skip_special_tokens=False)
            opened = opens_thought(str(end), config.thinking)
            item = task.judge(rows[answer.index], answer, opened=opened, thinking_tags=config.thinking)
            output.write_item(file, item)
            correct, count, cut = correct + item["correct"], count + 1, cut + (item["finished"] == "length")
            bar.set_postfix(
                accuracy=accuracy_text(correct / count), cut_off=share_text(cut / count), refresh=False
            )
            bar.update()


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
    return run_evaluation_script(
        options_class,
        arguments,
        description=f"Accuracy of a language model on {task.title}.",
        evaluate=lambda options: evaluate_task(task, options),
        show=lambda summary, options: print_summary(
            summary, data_title(options.recorded(), task.name), Path(options.output)
        ),
        kept=lambda output: f"the {OutputDirectory(output).written()} answers",
        needs_less_memory="use a smaller batch_size: the same command goes on with the answers that are kept",
    )
