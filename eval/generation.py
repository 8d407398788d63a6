"""Greedy generation in batches with a Hugging Face causal language model.

Prompts are token ids already; they are padded here by hand, on the left, so that nothing is set on a
tokenizer that others share. Loading models and judging answers are done elsewhere.

Shapes: B prompts in a batch, L the longest of them, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from mce_llm.eval.errors import GenerationError

Finished = Literal["eos", "stop", "length"]

_PARTIAL_TOKENS = 8  # tokens that may decode to nothing by themselves: special ones, and parts of a character


@dataclass(frozen=True)
class Generation:
    """What the model answered to one prompt.

    Attributes:
        index: The prompt's place in the sequence that was passed.
        text: The new text, without special tokens, cut at the earliest stop string.
        n_tokens: New tokens until EOS, the token that completed a stop string, or the limit, each included.
        finished: `eos`, `stop` (a stop string), or `length` (cut off at `max_new_tokens`).
    """

    index: int
    text: str
    n_tokens: int
    finished: Finished


def generate_greedy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    end_token_ids: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    max_new_tokens: int = 512,
    batch_size: int = 8,
) -> Iterator[Generation]:
    """Answer prompts greedily, batch by batch, the longest prompts first.

    The settings of `model.generation_config` (sampling, penalties, ...) do not count: generation is plain
    greedy. A batch ends when each of its rows has ended.

    Args:
        model: A causal language model, perhaps with an adapter. It is put in evaluation mode while it answers.
        tokenizer: Used to decode alone.
        prompts: Token ids, special tokens included; none may be empty.
        end_token_ids: Ids that end an answer; by default the tokenizer's EOS.
        stop: Strings that end an answer and are cut off with all that follows.
        max_new_tokens: The most tokens to add to a prompt.
        batch_size: Prompts at a time.

    Yields:
        The answers as they are ready: not in the order of the prompts, each exactly once.

    Raises:
        GenerationError: If an argument is out of range, a prompt is empty, too long for the model or has ids
            outside of its vocabulary, or the model's logits are not numbers.
    """
    ends = _end_ids(tokenizer, end_token_ids)
    _check(model, prompts, stop, max_new_tokens, batch_size)
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield from _answer_batch(model, tokenizer, prompts, indices, ends, list(stop), max_new_tokens)


def pad_left(prompts: Sequence[Sequence[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both (B, L) int64, with `filler` before the shorter prompts."""
    longest = max(len(prompt) for prompt in prompts)
    ids_BL = torch.tensor([[filler] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BL = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids_BL, mask_BL


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut a text at the earliest of the stop strings; say whether there was one."""
    places = [place for string in stop if (place := text.find(string)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


class _Stop(StoppingCriteria):
    """Ends a row at a stop string and remembers its length; `generate` itself ends rows at EOS.

    The tail is decoded as text, so it does not matter how the string falls into tokens. A string of n bytes
    has n tokens at most, apart from tokens that decode to nothing.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_length: int, rows: int
    ):
        self.tokenizer = tokenizer
        self.stop = stop
        self.prompt_length = prompt_length
        self.tail = max(len(string.encode()) for string in stop) + _PARTIAL_TOKENS
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        length = input_ids.shape[1] - self.prompt_length
        tails = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self.tail) :].tolist()
        for row, tail in enumerate(tails):
            if self.lengths[row] is None and cut_at_stop(_decode(self.tokenizer, tail), self.stop)[1]:
                self.lengths[row] = length
        done = [known is not None for known in self.lengths]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]


class _RefuseNaN(LogitsProcessor):
    """Raises where the most likely token would be picked among numbers that are none."""

    def __init__(self, indices: Sequence[int], prompt_length: int):
        self.indices = indices
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        bad_B = (torch.isnan(scores) | torch.isposinf(scores)).any(dim=-1)
        if bad_B.any():
            rows = bad_B.nonzero().flatten().tolist()
            position = input_ids.shape[1] - self.prompt_length + 1
            raise GenerationError(
                f"the model's logits are NaN or infinite for {len(rows)} of {len(self.indices)} prompts of a "
                f"batch at new token {position} (first: prompt {self.indices[rows[0]]}); its weights may hold "
                "NaN after a diverged training, or float16 overflowed: look at the training loss, or use "
                "--dtype float32"
            )
        return scores


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _end_ids(tokenizer: PreTrainedTokenizerBase, end_token_ids: Sequence[int] | None) -> list[int]:
    if end_token_ids is None:
        end_token_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not end_token_ids:
        raise GenerationError("no token ends an answer: the tokenizer has no EOS; pass end_token_ids")
    return list(dict.fromkeys(int(token) for token in end_token_ids))


def _check(
    model: Any, prompts: Sequence[Sequence[int]], stop: Sequence[str], max_new_tokens: int, batch_size: int
) -> None:
    if batch_size < 1:
        raise GenerationError(f"batch_size must be at least 1, got {batch_size}")
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if isinstance(stop, str) or not all(stop):
        raise GenerationError(f"stop must be a list of non-empty strings, got {stop!r}")
    rows = model.get_input_embeddings().weight.shape[0]
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise GenerationError(f"prompt {index} has no tokens")
        if not 0 <= min(prompt) <= max(prompt) < rows:
            raise GenerationError(
                f"prompt {index} has token id {max(prompt)}, but the model knows ids below {rows}: the tokenizer "
                "does not belong to the model"
            )
        if longest is not None and len(prompt) + max_new_tokens > longest:
            raise GenerationError(
                f"prompt {index} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}, together more "
                f"than the {longest} positions of the model; lower max_new_tokens to {max(longest - len(prompt), 0)}"
                " or leave the prompt out"
            )


@contextmanager
def _plainly_greedy(model: Any) -> Iterator[None]:
    """Evaluation mode and an empty generation config, for as long as one batch takes."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    saved, training = owner.generation_config, model.training
    owner.generation_config = GenerationConfig()
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        owner.generation_config = saved
        model.train(training)


def _answer_batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    indices: Sequence[int],
    ends: list[int],
    stop: list[str],
    max_new_tokens: int,
) -> list[Generation]:
    ids_BL, mask_BL = pad_left([prompts[index] for index in indices], filler=ends[0])
    prompt_length = ids_BL.shape[1]
    stopping = _Stop(tokenizer, stop, prompt_length, len(indices)) if stop else None
    with _plainly_greedy(model):
        output = model.generate(
            input_ids=ids_BL.to(model.device),
            attention_mask=mask_BL.to(model.device),  # generate() derives the position ids from it
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=ends,
                pad_token_id=ends[0],
                use_cache=True,
            ),
            logits_processor=LogitsProcessorList([_RefuseNaN(indices, prompt_length)]),
            stopping_criteria=StoppingCriteriaList([stopping] if stopping else []),
        )
    answers = output[:, prompt_length:].tolist()
    lengths = stopping.lengths if stopping else [None] * len(indices)
    return [
        _finish(tokenizer, index, ids, length, ends, stop)
        for index, ids, length in zip(indices, answers, lengths, strict=True)
    ]


def _finish(
    tokenizer: PreTrainedTokenizerBase,
    index: int,
    ids: list[int],
    stopped_at: int | None,
    ends: list[int],
    stop: list[str],
) -> Generation:
    """Cut a row where it ended; what `generate` put behind that is padding."""
    ended_at = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids) + 1)
    n_tokens = min(ended_at, stopped_at or len(ids), len(ids))
    finished: Finished = "eos" if ended_at == n_tokens else "length"
    text, found = cut_at_stop(_decode(tokenizer, ids[: n_tokens - (finished == "eos")]), stop)
    return Generation(index, text, n_tokens, "stop" if found else finished)
