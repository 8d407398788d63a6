"""The rows that a recipe trains on: one source's examples, tokenised, perhaps packed, and a record of what they are."""

from __future__ import annotations

from hashlib import blake2b

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mce_llm.data import KNOWN_SOURCES, pack_examples, tokenize_examples
from mce_llm.data.requests import Reading, Request
from mce_llm.data.sources import read_examples
from mce_llm.finetuning.checks import position_problem
from mce_llm.finetuning.settings import DataArguments
from mce_llm.lm.training.card_facts import DataRecord
from mce_llm.running.processes import say
from mce_llm.running.settings import ConfigurationError

_ROWS_AT_ONCE = 10_000


def source_of(settings: DataArguments, role: str) -> tuple[str, Request]:
    """One of the two sources of a recipe, and what is wanted of it.

    Args:
        settings: Those of the data.
        role: train or eval.
    """
    name, revision = settings.dataset_name, settings.dataset_revision
    source: str
    split: str | None
    if role == "train":
        source, split, limit = settings.dataset, settings.dataset_split, settings.limit
    else:
        source, split, limit = str(settings.eval_dataset), settings.eval_split, settings.eval_limit
        same = source == settings.dataset
        name = settings.eval_dataset_name or (name if same else None)
        revision = settings.eval_dataset_revision or (revision if same else None)
    return source, Request(
        split=split,
        default_split="train" if role == "train" else "test",
        name=name,
        revision=revision,
        columns=settings.column_mapping,
        format=settings.dataset_format,
        limit=limit,
    )


def unused_text(reading: Reading) -> str | None:
    """Which columns of a source play no part in training, in words; None where all do."""
    if not reading.unused:
        return None
    return f"read as {reading.layout.name}, without the columns {', '.join(map(repr, reading.unused))}"


def ignored_text(reading: Reading) -> str:
    """Which columns that mean something have no place in the format, in words."""
    names = ", ".join(map(repr, reading.ignored))
    return f"the format {reading.layout.name} has no place for {names}: what is there is not trained on"


def tokenized(
    tokenizer: PreTrainedTokenizerBase,
    settings: DataArguments,
    role: str,
    *,
    positions: int | None = None,
) -> tuple[Dataset, DataRecord]:
    """Examples of one source, tokenised for completion-only training, packed if asked for; and what they are.

    Args:
        tokenizer: The model's.
        settings: Those of the data.
        role: train or eval.
        positions: How many positions the model knows; None without a limit.

    Raises:
        DataError: The source cannot be read or used.
        ConfigurationError: Examples are longer than the model's positions.
    """
    source, request = source_of(settings, role)
    # The main process of each machine fills the cache of `datasets`; the others then read it.
    with PartialState().local_main_process_first():
        examples, reading = read_examples(source, request)
        rows, report = tokenize_examples(
            examples,
            tokenizer,
            settings.prompt_template,
            max_length=settings.max_length,
            num_proc=settings.dataset_num_proc,
            overlong="drop" if settings.overlong == "drop" else "truncate",
            turns=settings.turns,
            place=reading.place,
        )
        unused = unused_text(reading)
        say(f"{role} data: {source}{f', {unused}' if unused else ''}\n{report}")
        if reading.ignored:
            say(f"warning: {ignored_text(reading)}")
        for text in report.lost:
            if text.grave:
                say(f"warning: {text.sentence}")
        if problem := position_problem(report.longest, positions, role=role):
            raise ConfigurationError(problem)
        digest = digest_of(rows)
        if settings.packing:
            rows, packing_report = pack_examples(rows, settings.max_length)
            say(str(packing_report))
    return rows, DataRecord(
        role=role,
        source=KNOWN_SOURCES.get(source, (source, None))[0],
        split=request.split or request.default_split,
        examples=report.kept,
        prompt=settings.prompt,
        trained_tokens=report.trained_tokens,
        digest=digest,
    )


def digest_of(rows: Dataset) -> str:
    """A digest of tokens and labels, in the order of the rows.

    Args:
        rows: `input_ids` and `labels`, as `tokenize_examples` gives.
    """
    digest = blake2b(digest_size=16)
    for batch in rows.select_columns(["input_ids", "labels"]).with_format("arrow").iter(_ROWS_AT_ONCE):
        for name in ("input_ids", "labels"):
            for chunk in batch[name].chunks:
                digest.update(chunk.value_lengths().to_numpy(zero_copy_only=False).astype("int64").tobytes())
                digest.update(chunk.flatten().to_numpy(zero_copy_only=False).astype("int64").tobytes())
    return digest.hexdigest()
