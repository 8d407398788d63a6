"""Accuracy on GSM8K and on data like it: `accelerate launch eval/gsm8k.py --model MODEL --output DIR`.

Runs on one process or on many (each loads the model and answers its share of the questions), from the
command line or as `evaluate_gsm8k` from Python. Generation, answers and result files have modules of their own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import HfArgumentParser, PreTrainedTokenizerBase

from mce_llm.data import PROMPTS, DataError, get_prompt, load_examples
from mce_llm.eval.answers import GoldAnswerError, extract_answer, gold_value, is_correct
from mce_llm.eval.errors import EvaluationError, GenerationError
from mce_llm.eval.generation import Generation, generate_greedy
from mce_llm.eval.loading import DTYPES, load_model_and_tokenizer
from mce_llm.eval.results import Item, OutputDirectory, Summary, print_summary, summarize
from mce_llm.processes import LaunchError, join_processes, leave_processes

_PLACE_ONLY = ("output", "overwrite")  # options that do not change the outcome


@dataclass(frozen=True)
class Gsm8kConfig:
    """The options of an evaluation; each is a command-line option of the same name."""

    model: str = field(metadata={"help": "A model or PEFT adapter: a directory or a hub id."})
    output: str = field(metadata={"help": "The directory for items.jsonl, summary.json and config.json."})
    data: str = field(
        default="gsm8k",
        metadata={
            "help": "The questions: gsm8k, a hub id, a directory or a .jsonl, .json, .csv or .parquet file."
        },
    )
    split: str = field(default="test", metadata={"help": "The split of the data; a file is one split."})
    limit: int | None = field(default=None, metadata={"help": "Only the first questions; all by default."})
    prompt: str = field(default="metamath", metadata={"help": f"The prompt: {', '.join(PROMPTS)}."})
    max_new_tokens: int = field(default=512, metadata={"help": "The most tokens of an answer."})
    batch_size: int = field(default=16, metadata={"help": "Questions at a time on each process."})
    dtype: str = field(
        default="auto", metadata={"help": f"Precision of the weights: {', '.join(DTYPES)}; auto is as saved."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace results of another configuration in the output directory."}
    )

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, got {value}"
            for name in ("limit", "max_new_tokens", "batch_size")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        problems += [
            f"{name} must not be empty" for name in ("model", "output", "data") if not getattr(self, name)
        ]
        if self.dtype not in DTYPES:
            problems.append(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.prompt not in PROMPTS:
            problems.append(f"prompt must be one of {', '.join(PROMPTS)}, got {self.prompt!r}")
        if problems:
            raise EvaluationError("; ".join(problems))


def evaluate_gsm8k(
    config: Gsm8kConfig, model: Any = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Summary:
    """Answer every question, judge the answers and write the results.

    With several processes each must call this; each gets the summary.

    Args:
        config: The options.
        model: Use this model instead of loading `config.model`, which then only names it. Its dtype counts.
        tokenizer: Its tokenizer; given exactly where `model` is.

    Returns:
        The summary that was written to `summary.json`.

    Raises:
        EvaluationError: If the model or the output directory cannot be used.
        DataError: If the questions cannot be used.
        GenerationError: If the model cannot answer them, for instance because its weights hold NaN.
        LaunchError: If processes that were launched together each work alone.
    """
    if (model is None) != (tokenizer is None):
        raise EvaluationError("pass model and tokenizer together, or neither of them")
    state = join_processes()
    recorded = {key: value for key, value in asdict(config).items() if key not in _PLACE_ONLY}
    output = OutputDirectory(config.output, recorded)
    output.check(overwrite=config.overwrite)
    examples = load_questions(config)
    if model is None or tokenizer is None:
        model, tokenizer = load_model_and_tokenizer(config.model, config.dtype, state.device)
    state.wait_for_everyone()  # no process checks the directory after the main one has begun to write
    if state.is_main_process:
        output.prepare()
    state.wait_for_everyone()

    started = time.perf_counter()
    _answer_share(config, model, tokenizer, examples, output, state)
    state.wait_for_everyone()
    settings = {
        **{
            key: getattr(config, key)
            for key in ("model", "data", "split", "prompt", "max_new_tokens", "batch_size")
        },
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "processes": state.num_processes,
    }
    return _finish(output, len(examples), time.perf_counter() - started, settings, state)


def load_questions(config: Gsm8kConfig) -> Dataset:
    """Load the questions and make sure that each has one number as its answer.

    Args:
        config: The options.

    Returns:
        The columns `question` and `answer`.

    Raises:
        DataError: If the data cannot be read, or questions have no usable answer.
    """
    examples = load_examples(config.data, split=config.split, limit=config.limit)
    if not {"question", "answer"} <= set(examples.column_names):
        raise DataError(
            f"{config.data}: there are no reference answers, only {', '.join(examples.column_names)}; evaluation "
            "needs a question and an answer such as '18' or '... #### 18'"
        )
    problems = []
    for row, gold in enumerate(examples["answer"], start=1):
        try:
            if gold is None:
                raise GoldAnswerError("there is no reference answer")
            gold_value(gold)
        except GoldAnswerError as error:
            problems.append(f"record {row}: {error}")
    if problems:
        raise DataError(
            f"{config.data}: {len(problems)} of {len(examples)} records cannot be judged; "
            f"{'; '.join(problems[:3])}{'; ...' if len(problems) > 3 else ''}"
        )
    return examples.select_columns(["question", "answer"])


def _answer_share(
    config: Gsm8kConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    output: OutputDirectory,
    state: PartialState,
) -> None:
    """Answer every `num_processes`-th question, writing each item as soon as it is judged."""
    template = get_prompt(config.prompt)
    share = list(range(state.process_index, len(examples), state.num_processes))
    rows = examples.select(share).to_list()
    ends = template.end_token_ids(tokenizer)
    own_ends = getattr(model.generation_config, "eos_token_id", None)
    ends += own_ends if isinstance(own_ends, list) else [] if own_ends is None else [own_ends]
    answers = generate_greedy(
        model,
        tokenizer,
        [template.encode_prompt(tokenizer, row["question"], evaluation=True) for row in rows],
        end_token_ids=ends,
        stop=template.stop,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    bar = tqdm(answers, total=len(share), desc="GSM8K", unit="question", disable=not state.is_main_process)
    correct = 0
    with bar, output.rank_file(state.process_index).open("w", encoding="utf-8") as file:
        for count, answer in enumerate(bar, start=1):
            item = judge(share[answer.index], rows[answer.index], answer)
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
            file.flush()
            correct += item["correct"]
            bar.set_postfix(accuracy=f"{correct / count:.1%}", refresh=False)


def judge(index: int, row: dict[str, str], answer: Generation) -> Item:
    """Return the line of `items.jsonl` for a question and what the model answered."""
    predicted = extract_answer(answer.text)
    return {
        "index": index,
        "question": row["question"],
        "gold": row["answer"],
        "response": answer.text,
        "predicted": None if predicted.value is None else str(predicted.value),
        "found_by": predicted.found_by,
        "correct": is_correct(predicted, row["answer"]),
        "finished": answer.finished,
        "new_tokens": answer.n_tokens,
    }


def _finish(
    output: OutputDirectory, n: int, seconds: float, settings: dict[str, Any], state: PartialState
) -> Summary:
    """Merge on the main process, and give the summary, or what went wrong, to every process."""
    result: list[Summary | EvaluationError | None] = [None]
    if state.is_main_process:
        try:
            summary = summarize(output.merge(n), seconds, settings)
            output.write_summary(summary)
            result[0] = summary
        except EvaluationError as error:
            result[0] = error
    broadcast_object_list(result)
    if isinstance(result[0], EvaluationError):
        raise result[0]
    assert result[0] is not None
    return result[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The options; by default those of the process.

    Returns:
        The exit code: 0, 2 for a problem that the message explains, 130 after Ctrl-C.
    """
    parser = HfArgumentParser(
        cast(Any, Gsm8kConfig), description="Accuracy of a language model on GSM8K.", prog="gsm8k.py"
    )
    options = parser.parse_args(arguments)
    output = OutputDirectory(options.output, {})
    try:
        summary = evaluate_gsm8k(Gsm8kConfig(**vars(options)))
    except (EvaluationError, DataError, LaunchError) as error:
        return _fail(str(error), everywhere=isinstance(error, GenerationError))
    except torch.OutOfMemoryError:
        return _fail(
            f"out of memory with --batch_size {options.batch_size}; use a smaller one", everywhere=True
        )
    except KeyboardInterrupt:
        if PartialState().is_main_process:
            print(
                f"\ninterrupted: {output.written()} answers are kept in {output.path}/items.rank*.jsonl",
                file=sys.stderr,
            )
        return 130
    if PartialState().is_main_process:
        print_summary(summary, Path(options.output))
    leave_processes()
    return 0


def _fail(message: str, *, everywhere: bool) -> int:
    """Print a problem once. What one process alone may meet is printed by that one (`everywhere`)."""
    state = PartialState()
    if state.is_main_process or everywhere:
        print(f"error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(3)  # the launcher ends all processes when one is gone: let the main one print first
    return 2


if __name__ == "__main__":
    sys.exit(main())
