"""From examples to ``input_ids`` and ``labels``: completion-only training, with a count of all that was cut.

The wording and the boundary belong to the prompt template; here it is applied to a data set, lengths are
limited, and a report says what that cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from mce_llm.data.errors import DataError
from mce_llm.data.prompts import IGNORE_INDEX, PromptTemplate

# Part of the cache key: raise it when the same inputs would give other tokens.
_CACHE_VERSION = 1


@dataclass(frozen=True)
class TokenizationReport:
    """What tokenisation kept and what it cut. Lengths are in tokens, after truncation.

    Attributes:
        examples: Examples given.
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

    def __str__(self) -> str:
        trained = self.trained_tokens / self.tokens if self.tokens else 0.0
        rows = [
            ("examples", f"{self.kept:,} of {self.examples:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("trained tokens", f"{self.trained_tokens:,} ({trained:.1%})"),
            ("truncated", f"{self.truncated:,} (limit {self.max_length:,})"),
            ("dropped, too long", f"{self.dropped_overlong:,}"),
            ("dropped, nothing to train", f"{self.dropped_untrained:,}"),
            ("longest", f"{self.longest:,} (before truncation {self.longest_given:,})"),
            ("mean length", f"{self.mean_length:.1f}"),
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
) -> tuple[datasets.Dataset, TokenizationReport]:
    """Tokenise examples for completion-only training.

    The labels are -100 on the prompt and equal ``input_ids`` on the completion, whose end (EOS, or for
    chat the end-of-turn token) is trained exactly once. Conversations train every assistant turn.

    Args:
        dataset: From `load_examples`: ``question`` and ``response``, or ``messages``.
        tokenizer: The model's tokenizer.
        prompt: The template; the same one is used at evaluation.
        max_length: The most tokens an example may have.
        num_proc: Processes to use; ``None`` for one.
        overlong: ``"truncate"`` cuts a longer example at the end, ``"drop"`` leaves it out.

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
            "load the data with load_examples"
        )
    # Also settles the tokenizer's internal state, which is part of the cache key, and finds a tokenizer
    # without EOS or without a chat template before any process is started.
    _encode(dataset[0], 0, tokenizer, prompt, max_length, _CACHE_VERSION)
    encoded = dataset.map(
        _encode,
        with_indices=True,
        fn_kwargs={
            "tokenizer": tokenizer,
            "prompt": prompt,
            "max_length": max_length,
            "cache_version": _CACHE_VERSION,
        },
        remove_columns=dataset.column_names,
        features=datasets.Features(
            {
                "input_ids": datasets.Sequence(datasets.Value("int32")),
                "labels": datasets.Sequence(datasets.Value("int32")),
                "given_length": datasets.Value("int64"),
                "trained": datasets.Value("int64"),
            }
        ),
        num_proc=num_proc,
        desc="Tokenising",
    )
    return _keep_usable(encoded, max_length, overlong)


def _encode(
    example: dict[str, Any],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptTemplate,
    max_length: int,
    cache_version: int,
) -> dict[str, Any]:
    del cache_version  # only there to be hashed
    try:
        if "messages" in example:
            input_ids, labels = prompt.encode_conversation(tokenizer, example["messages"])
        else:
            before = prompt.encode_prompt(tokenizer, example["question"])
            after = prompt.encode_completion(tokenizer, example["response"])
            input_ids, labels = before + after, [IGNORE_INDEX] * len(before) + after
    except DataError as error:
        raise DataError(f"record {index + 1}: {error}") from error
    given_length = len(input_ids)
    input_ids, labels = input_ids[:max_length], labels[:max_length]
    # The model predicts token t from the tokens before it, so the first label is never used.
    trained = sum(label != IGNORE_INDEX for label in labels[1:])
    return {"input_ids": input_ids, "labels": labels, "given_length": given_length, "trained": trained}


def _keep_usable(
    encoded: datasets.Dataset, max_length: int, overlong: str
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
    )
    result = encoded.select_columns(["input_ids", "labels"])
    if not keep.all():
        result = result.select(np.flatnonzero(keep))
    return result, report
