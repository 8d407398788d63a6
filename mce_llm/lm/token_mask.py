"""Which rows of a head are tokens that its tokenizer can emit, and a padding token among them that is never a label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.lm.heads import UnsupportedModelError
from mce_llm.running.stop_ids import stop_ids

# How much of a data set is looked at for the padding token: half a gigabyte of a column, or some rows of a list.
_MOST_IDS = 2**27
_MOST_ROWS = 4096
_COLUMNS = ("labels", "input_ids")  # in this order: what becomes labels later is among the inputs


def token_mask_of(
    tokenizer: PreTrainedTokenizerBase,
    num_rows: int,
    *,
    model: PreTrainedModel | None = None,
    rows: Iterable[Any] = (),
) -> Tensor:
    """(num_rows,) bool: True for rows that a tokenizer can emit.

    Vocabularies are padded to round sizes, and a padding token that is nothing else is never trained; such rows hold
    what the initialisation left and say nothing about language. A padding token stays in where it is another special
    token too, where the model ends its text with it, where the chat template writes it, and where the data hold it.
    Whether that found all its uses is checked by the loss, which refuses a label that the mask leaves out.

    Args:
        tokenizer: With its padding token.
        num_rows: V, the rows of the head.
        model: Its config and generation config say with which tokens it ends a text.
        rows: Data sets to look for the padding token in: columns `labels` (or else `input_ids`) of `datasets.Dataset`,
            the first rows of lists. Others are not looked at, since reading their rows may be work.

    Raises:
        UnsupportedModelError: If the tokenizer has ids beyond the table.
    """
    ids = sorted(set(tokenizer.get_vocab().values()))
    if ids and ids[-1] >= num_rows:
        raise UnsupportedModelError(
            f"the tokenizer has ids up to {ids[-1]}, the model's head only {num_rows} rows; "
            "set resize_embeddings: true (in Python: model.resize_token_embeddings), or use the model's own tokenizer"
        )
    mask = torch.zeros(num_rows, dtype=torch.bool)
    mask[torch.tensor(ids, dtype=torch.long)] = True
    padding = tokenizer.pad_token_id
    if padding is not None and not (
        _is_special_otherwise(tokenizer)
        or padding in _end_tokens(model)
        or any(_holds(data, padding) for data in rows)
    ):
        mask[padding] = False
    return mask


def tokenizer_in(processing_class: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a trainer was given: as such, or inside a processor of text and images; None without one."""
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return processing_class
    inner = getattr(processing_class, "tokenizer", None)
    return inner if isinstance(inner, PreTrainedTokenizerBase) else None


def _is_special_otherwise(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the padding token is also EOS, BOS or the like, or stands in the chat template's text."""
    padding = str(tokenizer.pad_token)
    named = {token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    templates = getattr(tokenizer, "chat_template", None) or ""
    texts = templates.values() if isinstance(templates, dict) else [templates]
    return padding in named or any(padding in text for text in texts)


def _end_tokens(model: PreTrainedModel | None) -> set[int]:
    """The tokens that end a text, as the model's config and generation config list them."""
    if model is None:
        return set()
    configs = (model.config, model.config.get_text_config(), getattr(model, "generation_config", None))
    return {token for config in configs for token in stop_ids(config)}


def _holds(data: Any, token: int) -> bool:
    """Whether a token is among the labels of a data set, as far as it is looked at."""
    if isinstance(data, dict):  # several evaluation sets
        return any(_holds(one, token) for one in data.values())
    if hasattr(data, "column_names"):  # of `datasets`, which is not worth an import here
        columns = data.column_names or ()
        name = next((name for name in _COLUMNS if name in columns), None)
        table = getattr(data, "data", None)  # a stream has none
        return name is not None and table is not None and _column_holds(table.column(name), token)
    if not isinstance(data, (list, tuple)):
        return False
    for row in data[:_MOST_ROWS]:
        name = next((name for name in _COLUMNS if isinstance(row, dict) and name in row), None)
        if name is not None and bool((torch.as_tensor(row[name]) == token).any()):
            return True
    return False


def _column_holds(column: Any, token: int) -> bool:
    """Whether a token is in a column of lists of ids (Arrow), read from where it lies."""
    left = _MOST_IDS
    for chunk in column.chunks:
        ids = chunk
        while hasattr(ids, "flatten"):  # lists, perhaps of lists
            ids = ids.flatten()
        if (ids[:left].to_numpy(zero_copy_only=False) == token).any():
            return True
        left -= len(ids)
        if left <= 0:
            break
    return False
