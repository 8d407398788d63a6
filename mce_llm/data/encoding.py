"""From text to token ids, with the boundary between prompt and completion kept fixed.

Prompt and completion are always tokenised apart, so that the ids a model is trained to continue are
exactly the ids it is given at generation. What that needs from a tokenizer lives here; prompt wording does not.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from mce_llm.data.errors import DataError

# Text put in front of a continuation and cut off again. A newline is a token of its own in Llama's and
# Mistral's vocabularies; the colon is for SentencePiece models that turn a newline into a space.
_ANCHORS = ("\n", ":")


def bare_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, literal: bool = False) -> list[int]:
    """Tokenise ``text`` alone: nothing added in front or behind.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        text: The text.
        literal: Read the spelling of a special token, such as ``</s>``, as ordinary characters.

    Returns:
        The token ids.
    """
    options = {"split_special_tokens": True} if literal else {}
    # verbose=False: no warning about texts beyond the model's length; they are counted and cut later.
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, **options)
    return list(encoded["input_ids"])


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer puts in front of every text: usually BOS, or nothing."""
    bare = bare_ids(tokenizer, "a")
    full = list(tokenizer("a", verbose=False)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def opening_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise a text that opens a sequence, with BOS where the tokenizer adds one, never two.

    An EOS that the tokenizer would add at the end is left out: the text is to be continued.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        text: The text; it may itself begin with the spelling of BOS.

    Returns:
        The token ids.
    """
    ids = bare_ids(tokenizer, text)
    prefix = special_prefix(tokenizer)
    if prefix and ids[: len(prefix)] == prefix:
        return ids
    return prefix + ids


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, literal: bool = False) -> list[int]:
    """Tokenise a text that continues another, so that decoding both gives the two texts joined.

    SentencePiece tokenizers (Llama 2, Llemma, Mistral) put a space before whatever they are given,
    which would slip a space between prompt and completion. Here it is kept out.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        text: The text; it begins with a space only where one is meant.
        literal: As in `bare_ids`.

    Returns:
        The token ids.
    """
    return list(_continuation(tokenizer, text, literal)[0])


class Placed(NamedTuple):
    """Token ids, and for each the characters of the text that it stands for, as (begin, end)."""

    ids: list[int]
    places: list[tuple[int, int]]


def placed_continuation(tokenizer: PreTrainedTokenizerBase, text: str, *, literal: bool = False) -> Placed:
    """Tokenise as `continuation_ids` does, and say where each token stands in the text.

    Args:
        tokenizer: A fast tokenizer of Hugging Face.
        text: As there.
        literal: As there.

    Returns:
        The ids and their places. A token may stand for nothing, and several for one character.

    Raises:
        DataError: The tokenizer is a slow one, which does not know the places.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} is a {type(tokenizer).__name__}, which does not "
            "say which characters a token stands for; save a fast one (with a tokenizer.json) beside the model"
        )
    ids, anchor = _continuation(tokenizer, text, literal)
    options = {"split_special_tokens": True} if literal else {}
    encoded = tokenizer(
        anchor + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **options
    )
    cut, first = len(encoded["input_ids"]) - len(ids), len(anchor)
    places = [(max(0, begin - first), max(0, end - first)) for begin, end in encoded["offset_mapping"][cut:]]
    return Placed(ids, places)


def _continuation(tokenizer: PreTrainedTokenizerBase, text: str, literal: bool) -> tuple[list[int], str]:
    """The ids, and the text in front of which they were cut off."""
    ids = bare_ids(tokenizer, text, literal=literal)
    if not text or not _adds_leading_space(tokenizer):
        return ids, ""
    for anchor in _ANCHORS:
        anchor_ids = bare_ids(tokenizer, anchor)
        joined = bare_ids(tokenizer, anchor + text, literal=literal)
        if anchor_ids and joined[: len(anchor_ids)] == anchor_ids:
            return joined[len(anchor_ids) :], anchor
    return ids, ""


def _adds_leading_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    tokens = tokenizer.convert_ids_to_tokens(bare_ids(tokenizer, "a"))
    return bool(tokens) and str(tokens[0]).startswith("▁")


def special_token_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the spelling of every token marked special, those added later included."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return set(tokenizer.all_special_tokens) | {token.content for token in added if token.special}
