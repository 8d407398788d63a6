"""Which rows of a head are tokens that its tokenizer can emit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mce_llm.lm.heads import UnsupportedModelError


def token_mask_of(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> Tensor:
    """(num_rows,) bool: True for rows that a tokenizer can emit.

    Vocabularies are padded to round sizes, and a padding token that is nothing else is never trained; such rows hold
    what the initialisation left and say nothing about language.

    Raises:
        UnsupportedModelError: If the tokenizer has ids beyond the table.
    """
    ids = sorted(set(tokenizer.get_vocab().values()))
    if ids and ids[-1] >= num_rows:
        raise UnsupportedModelError(
            f"the tokenizer has ids up to {ids[-1]}, the model's head only {num_rows} rows; "
            "resize the embeddings (model.resize_token_embeddings) or use the model's own tokenizer"
        )
    mask = torch.zeros(num_rows, dtype=torch.bool)
    mask[torch.tensor(ids, dtype=torch.long)] = True
    used: Sequence[int | None] = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        mask[tokenizer.pad_token_id] = False
    return mask
