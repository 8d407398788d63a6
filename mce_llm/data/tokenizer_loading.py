"""Loading the tokenizer that belongs to a model, for training and for evaluation alike."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mce_llm.data.errors import DataError
from mce_llm.running.hub import at_revision, hub_problem, revision_option
from mce_llm.running.messages import loading_problem

_SAMPLE = "2 + 2 = 4"


def load_tokenizer(
    name: str | os.PathLike[str], *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer, and make sure that it can read.

    Some versions of transformers make an empty tokenizer for a model that has none, in which every text is
    one unknown token.

    Args:
        name: A directory or a hub id.
        trust_remote_code: Run the Python code that a hub repository brings.
        revision: A branch, tag or commit of a hub id; None for the main branch.

    Returns:
        The tokenizer.

    Raises:
        DataError: There is none, its files are damaged, or it knows no digits.
    """
    if problem := hub_problem(str(name), revision=revision):
        raise DataError(f"cannot load a tokenizer: {problem}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, **revision_option(revision)
        )
    except Exception as error:  # as many types as there are tokenizers
        problem = loading_problem(error)
        there = Path(name).expanduser().exists()
        advice = (
            "; save it there with save_pretrained" if there and "trust_remote_code" not in problem else ""
        )
        raise DataError(
            f"cannot load a tokenizer from {str(name)!r}{at_revision(revision)}: {problem}{advice}"
        ) from error
    if set(tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}:
        raise DataError(
            f"cannot load a tokenizer from {str(name)!r}: what is there cannot read {_SAMPLE!r}; save the model's "
            "tokenizer there with save_pretrained"
        )
    return tokenizer
