"""A small byte-level BPE tokenizer trained on the spot, for models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mce_llm.data.errors import DataError

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"

_SMALLEST = 256 + 2


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that reads digits one by one.

    Any text can be encoded and decoded without loss. There is no BOS; EOS and padding are tokens of their
    own. It can be saved, and loaded again with ``AutoTokenizer.from_pretrained``.

    Args:
        texts: The texts to learn from.
        vocab_size: The most tokens to have, at least 258 (256 bytes, EOS and padding); a small corpus
            may give fewer.

    Returns:
        The tokenizer.

    Raises:
        DataError: ``vocab_size`` is too small.
    """
    if vocab_size < _SMALLEST:
        raise DataError(
            f"vocab_size must be at least {_SMALLEST} (256 bytes, {EOS_TOKEN} and {PAD_TOKEN}), got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
