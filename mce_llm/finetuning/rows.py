"""The rows that a recipe trains on: one source's examples, tokenised, perhaps packed, and a record of what they are."""

from __future__ import annotations

from hashlib import blake2b

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mce_llm.data import KNOWN_SOURCES, get_prompt, load_examples, pack_examples, tokenize_examples
from mce_llm.finetuning.checks import position_problem
from mce_llm.finetuning.settings import DataArguments
from mce_llm.lm.training.card_facts import DataRecord
from mce_llm.running.processes import say
from mce_llm.running.settings import ConfigurationError

_ROWS_AT_ONCE = 10_000


def tokenized(
    tokenizer: PreTrainedTokenizerBase,
    settings: DataArguments,
    source: str,
    split: str,
    role: str,
    *,
    positions: int | None = None,
) -> tuple[Dataset, DataRecord]:
    """Examples of one source, tokenised for completion-only training, packed if asked for; and what they are.

    Args:
        tokenizer: The model's.
        settings: Those of the data.
        source: One of its two sources.
        split: The source's split.
        role: train or eval.
        positions: How many positions the model knows; None without a limit.

    Raises:
        DataError: The source cannot be read or used.
        ConfigurationError: Examples are longer than the model's positions.
    """
    # The main process of each machine fills the cache of `datasets`; the others then read it.
    with PartialState().local_main_process_first():
        examples = load_examples(
            source,
            split=split,
            name=settings.dataset_name if role == "train" else None,
            columns=settings.column_mapping,
            format=settings.dataset_format,
            limit=settings.limit if role == "train" else settings.eval_limit,
        )
        rows, report = tokenize_examples(
            examples,
            tokenizer,
            get_prompt(settings.prompt),
            max_length=settings.max_length,
            overlong="drop" if settings.overlong == "drop" else "truncate",
        )
        say(f"{role} data: {source}\n{report}")
        if problem := position_problem(report.longest, positions, role=role):
            raise ConfigurationError(problem)
        digest = digest_of(rows)
        if settings.packing:
            rows, packing_report = pack_examples(rows, settings.max_length)
            say(str(packing_report))
    return rows, DataRecord(
        role=role,
        source=KNOWN_SOURCES.get(source, (source, None))[0],
        split=split,
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
