"""From examples to ``input_ids`` and ``labels``: completion-only training, with a count of all that was cut.

The wording and the boundary belong to the prompt template; here it is applied to a data set, lengths are
limited, and a report says what that cost.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from mce_llm.data.chat import TURNS, Turns
from mce_llm.data.conversations import conversation_of
from mce_llm.data.dialects import template_of
from mce_llm.data.encoding import special_token_texts
from mce_llm.data.errors import DataError
from mce_llm.data.lost_text import LostText, counted, lost_texts
from mce_llm.data.prompts import IGNORE_INDEX, Encoded, PromptTemplate
from mce_llm.data.template_date import day_text
from mce_llm.running.messages import nearest_hint

_BATCH = 1000
_ROW = ("input_ids", "labels", "given_length", "trained", "record", "lost")
# Part of the cache key: raise it when the same inputs would give other tokens.
_CACHE_VERSION = 3


@dataclass(frozen=True)
class TokenizationReport:
    """What tokenisation kept and what it cut. Lengths are in tokens, after truncation.

    Attributes:
        examples: Examples given; of conversations that make one for each turn, what they make.
        kept: Examples in the result.
        truncated: Examples cut to ``max_length`` and kept; they do not end in EOS.
        dropped_overlong: Examples longer than ``max_length`` that were dropped (``overlong="drop"``).
        dropped_untrained: Examples dropped because truncation left them no trained token.
        tokens: Tokens in the result.
        trained_tokens: Of these, the tokens that are trained (label other than -100).
        longest: Length of the longest example in the result.
        mean_length: Mean length in the result.
        longest_given: Length of the longest example before truncation.
        max_length: The limit.
        records: Records that the examples were made of.
        lost: Texts that the chat template leaves out.
        day: What stands where the chat template would write today's date; None where it writes none.
    """

    examples: int
    kept: int
    truncated: int
    dropped_overlong: int
    dropped_untrained: int
    tokens: int
    trained_tokens: int
    longest: int
    mean_length: float
    longest_given: int
    max_length: int
    records: int
    lost: tuple[LostText, ...] = ()
    day: date | None = None

    def __str__(self) -> str:
        trained = self.trained_tokens / self.tokens if self.tokens else 0.0
        made = (
            f", one for each trained turn of {self.records:,} records"
            if self.examples != self.records
            else ""
        )
        rows = [
            ("examples", f"{self.kept:,} of {self.examples:,}{made}"),
            ("tokens", f"{self.tokens:,}"),
            ("trained tokens", f"{self.trained_tokens:,} ({trained:.1%})"),
            ("truncated", f"{self.truncated:,} (limit {self.max_length:,})"),
            ("dropped, too long", f"{self.dropped_overlong:,}"),
            ("dropped, nothing to train", f"{self.dropped_untrained:,}"),
            ("longest", f"{self.longest:,} (before truncation {self.longest_given:,})"),
            ("mean length", f"{self.mean_length:.1f}"),
            *([("date", day_text(self.day))] if self.day else []),
            *(("not as it was given", text.sentence) for text in self.lost),
        ]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def tokenize_examples(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptTemplate,
    *,
    max_length: int,
    num_proc: int | None = None,
    overlong: Literal["truncate", "drop"] = "truncate",
    turns: Turns = "all",
    place: Callable[[int], str] | None = None,
) -> tuple[datasets.Dataset, TokenizationReport]:
    """Tokenise examples for completion-only training.

    The labels are -100 on the prompt and equal ``input_ids`` on the completion, whose end (EOS, or for
    chat the end-of-turn token) is trained exactly once. Conversations train every assistant turn that is not marked as
    untrained.

    Args:
        dataset: From `load_examples`: ``question`` and ``response``, or ``messages``.
        tokenizer: The model's tokenizer.
        prompt: The template; the same one is used at evaluation.
        max_length: The most tokens an example may have.
        num_proc: Processes to use; ``None`` for one.
        overlong: ``"truncate"`` cuts a longer example at the end, ``"drop"`` leaves it out.
        turns: What a conversation trains: ``"all"`` its assistant turns in one example, the ``"last"`` alone, or ``"each"``
            in an example of its own, which ends there.
        place: Where the record of a number (from 0) is from, for messages; by default "record 1".

    Returns:
        The data set with ``input_ids`` and ``labels`` (lists of equal length), in the order given, and
        the report.

    Raises:
        DataError: An argument or a record cannot be used, or no example is left.
    """
    if max_length < 2:
        raise DataError(f"max_length must be at least 2 (a prompt token and a trained one), got {max_length}")
    if overlong not in {"truncate", "drop"}:
        raise DataError(f"overlong must be 'truncate' or 'drop', got {overlong!r}")
    if len(dataset) == 0:
        raise DataError("there is no example to tokenise")
    columns = set(dataset.column_names)
    if not ({"question", "response"} <= columns or "messages" in columns):
        raise DataError(
            f"expected the columns question and response, or messages, found {', '.join(sorted(columns))}; "
            "set columns (in Python: load the data with load_examples)"
        )
    if turns not in TURNS:
        raise DataError(f"turns must be one of {', '.join(TURNS)}, got {turns!r}{nearest_hint(turns, TURNS)}")
    prompt.check(tokenizer)
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "prompt": prompt,
        "max_length": max_length,
        "turns": turns,
        "cache_version": _CACHE_VERSION,
    }
    named = place or (lambda number: f"record {number + 1}")
    try:
        # Also settles the tokenizer's internal state, which is part of the cache key, and finds a tokenizer
        # without EOS or without a chat template before any process is started.
        _encode(dataset[:1], [0], **options)
        encoded = dataset.map(
            _encode,
            batched=True,
            batch_size=_BATCH,
            with_indices=True,
            fn_kwargs=options,
            remove_columns=dataset.column_names,
            features=datasets.Features(
                {
                    "input_ids": datasets.Sequence(datasets.Value("int32")),
                    "labels": datasets.Sequence(datasets.Value("int32")),
                    "given_length": datasets.Value("int64"),
                    "trained": datasets.Value("int64"),
                    "record": datasets.Value("int64"),
                    "lost": datasets.Value("string"),
                }
            ),
            num_proc=num_proc,
            desc="Tokenising",
        )
    except _RecordError as error:
        raise DataError(f"{named(error.record)}: {error.reason}") from error
    rows, report = _keep_usable(encoded, max_length, overlong, len(dataset), named)
    return rows, replace(report, day=prompt.written_day(tokenizer))


class _RecordError(DataError):
    """What is wrong with the record of a number (from 0)."""

    def __init__(self, record: int, reason: str) -> None:
        super().__init__(record, reason)  # both, so that it can be sent from another process
        self.record, self.reason = record, reason


def _encode(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptTemplate,
    max_length: int,
    turns: Turns,
    cache_version: int,
) -> dict[str, list[Any]]:
    """The rows that a batch of examples makes: as many, or more where each turn makes one."""
    del cache_version  # only there to be hashed
    rows: dict[str, list[Any]] = {name: [] for name in _ROW}
    special = special_token_texts(tokenizer) if prompt.chat else set()
    for number, index in enumerate(indices):
        example = {name: values[number] for name, values in batch.items()}
        try:
            made, lost = _encode_one(example, tokenizer, prompt, turns, special)
        except DataError as error:
            raise _RecordError(index, str(error)) from error
        for place, row in enumerate(made):
            labels = row.labels[:max_length]
            rows["input_ids"].append(row.input_ids[:max_length])
            rows["labels"].append(labels)
            rows["given_length"].append(len(row.input_ids))
            # The model predicts token t from the tokens before it, so the first label is never used.
            rows["trained"].append(sum(label != IGNORE_INDEX for label in labels[1:]))
            rows["record"].append(index)
            rows["lost"].append(json.dumps(lost) if lost and not place else None)
    return rows


def _encode_one(
    example: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptTemplate,
    turns: Turns,
    special: set[str],
) -> tuple[list[Encoded], list[tuple[str, str]]]:
    """The rows of an example, and the texts of it that are in none of them."""
    if "messages" not in example and not prompt.chat:
        before = prompt.encode_prompt(tokenizer, example["question"])
        after = prompt.encode_completion(tokenizer, example["response"])
        return [Encoded(before + after, [IGNORE_INDEX] * len(before) + after, "")], []
    if "messages" in example:
        conversation = prompt.with_system(conversation_of(example))
    else:
        conversation = prompt.pair(example["question"], example["response"])
    made = prompt.encode_turns(tokenizer, conversation, turns)
    trained = [place for place, flag in enumerate(conversation.trained) if flag]
    last = trained[-1] if trained else len(conversation.messages)
    return made, lost_texts(
        conversation,
        [row.text for row in made],
        last,
        template=template_of(tokenizer, tools=bool(conversation.tools)),
        special=special,
    )


def _keep_usable(
    encoded: datasets.Dataset, max_length: int, overlong: str, records: int, place: Callable[[int], str]
) -> tuple[datasets.Dataset, TokenizationReport]:
    given = np.asarray(encoded["given_length"][:], dtype=np.int64)
    trained = np.asarray(encoded["trained"][:], dtype=np.int64)
    too_long = given > max_length
    dropped = too_long if overlong == "drop" else np.zeros_like(too_long)
    untrained = (trained == 0) & ~dropped
    keep = ~dropped & ~untrained
    if not keep.any():
        raise DataError(
            f"none of the {len(given)} examples can be used with max_length={max_length}: "
            f"{int(dropped.sum())} are too long and were dropped, {int(untrained.sum())} have no trained "
            f"token left; the shortest has {int(given.min())} tokens, so raise max_length"
        )
    lengths = np.minimum(given, max_length)[keep]
    report = TokenizationReport(
        examples=len(given),
        kept=int(keep.sum()),
        truncated=int((too_long & keep).sum()),
        dropped_overlong=int(dropped.sum()),
        dropped_untrained=int(untrained.sum()),
        tokens=int(lengths.sum()),
        trained_tokens=int(trained[keep].sum()),
        longest=int(lengths.max()),
        mean_length=float(lengths.mean()),
        longest_given=int(given.max()),
        max_length=max_length,
        records=records,
        lost=_counted(encoded, place),
    )
    result = encoded.select_columns(["input_ids", "labels"])
    if not keep.all():
        result = result.select(np.flatnonzero(keep))
    return result, report


def _counted(encoded: datasets.Dataset, place: Callable[[int], str]) -> tuple[LostText, ...]:
    lost = encoded["lost"][:]
    if not any(lost):
        return ()
    records = encoded["record"][:]
    return counted(lost, lambda number: place(records[number]))
