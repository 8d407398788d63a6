"""How many embeddings a tokenizer needs, and giving them to a model that has fewer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.running.devices import same_random_state


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of an embedding table with one for every id of the tokenizer."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))


def embedding_rows(model: PreTrainedModel) -> int:
    """Rows of the input embeddings."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def with_rows_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, draw: bool) -> int:
    """Give a model rows in embeddings and head for ids that it has none for; one that has enough is left alone.

    Args:
        model: It and its configuration are changed in place.
        tokenizer: Its tokenizer.
        draw: Begin the rows at the mean of the others, with a little noise of their covariance, the same in every process
            that was seeded alike; False where they will be loaded, or have no values at all.

    Returns:
        How many rows were added.
    """
    before = embedding_rows(model)
    needed = rows_needed(tokenizer)
    if needed <= before:
        return 0
    weight: Any = model.get_input_embeddings().weight
    with same_random_state(weight.device):
        torch.manual_seed(torch.initial_seed())
        model.resize_token_embeddings(needed, mean_resizing=draw)
    return needed - before
