"""Answers batch by batch through `generate` of transformers, for any model that it can run.

Prompts of like length share a batch, which ends with its longest answer. With a static cache every batch has the same
shape as far as possible, so that CUDA devices compile the model once (transformers does so by itself). Settings, choice
of tokens and ends of answers are in `decoding`.

Shapes: B prompts in a batch, L the longest of them, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from mce_llm.eval.engines.decoding import Ends, Picker, Request, base_model, evaluating
from mce_llm.eval.items import Generation

_STATIC_STEP = 64  # prompt lengths are rounded up to multiples of this, so that few shapes are compiled


def answer_in_buckets(
    model: Any,
    requests: Sequence[Request],
    picker: Picker,
    ends: Ends,
    batch_size: int,
    *,
    static: bool = False,
) -> Iterator[Generation]:
    """Answer requests in their order, `batch_size` at a time.

    Args:
        model: A causal language model.
        requests: What to answer.
        picker: Chooses tokens.
        ends: Knows where answers end.
        batch_size: Rows.
        static: Keep keys and values in a static cache.

    Yields:
        The answers of a batch when the last of them has ended.
    """
    for start in range(0, len(requests), batch_size):
        yield from _answer_batch(
            model, requests[start : start + batch_size], picker, ends, batch_size, static
        )


def pad_left(
    prompts: Sequence[Sequence[int]], filler: int, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both (B, L) int64, with `filler` before the shorter prompts.

    Args:
        prompts: B lists of token ids.
        filler: A token id.
        multiple: L is rounded up to a multiple of this.

    Returns:
        Ids and mask.
    """
    longest = -(-max(len(prompt) for prompt in prompts) // multiple) * multiple
    ids_BL = torch.tensor([[filler] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BL = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids_BL, mask_BL


class _Choose(LogitsProcessor):
    """Leaves the picker's token alone possible, so that `generate` takes it; remembers which rows have ended."""

    def __init__(self, rows: Sequence[Request | None], prompt_length: int, picker: Picker, ends: Ends):
        self.rows = list(rows)
        self.answers: list[list[int]] = [[] for _ in rows]
        self.prompt_length = prompt_length
        self.picker = picker
        self.ends = ends

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        tokens = self.picker(scores, self.rows, input_ids.shape[1] - self.prompt_length + 1)
        chosen_BV = torch.full_like(scores, -torch.inf)
        chosen_BV[torch.arange(len(tokens)), tokens] = 0
        for row, token in enumerate(tokens):
            if self.rows[row] is not None:
                self.answers[row].append(token)
                if self.ends.reached(self.answers[row]):
                    self.rows[row] = None
        return chosen_BV  # type: ignore[return-value]


class _AllEnded(StoppingCriteria):
    def __init__(self, chosen: _Choose):
        self.chosen = chosen

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        done = [row is None for row in self.chosen.rows]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]


@contextmanager
def _empty_generation_config(model: Any) -> Iterator[None]:
    """The checkpoint's own settings (sampling, penalties, ...) do not count, for as long as one batch takes."""
    owner = base_model(model)
    saved = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = saved


def _answer_batch(
    model: Any, requests: Sequence[Request], picker: Picker, ends: Ends, batch_size: int, static: bool
) -> list[Generation]:
    filler = min(ends.end_token_ids)
    rows: list[Request | None] = list(requests)
    prompts = [request.prompt for request in requests]
    if static:  # the last batch is filled up to the shape of the others
        prompts += [prompts[-1]] * (batch_size - len(prompts))
        rows += [None] * (batch_size - len(rows))
    ids_BL, mask_BL = pad_left(prompts, filler, _STATIC_STEP if static else 1)
    chosen = _Choose(rows, ids_BL.shape[1], picker, ends)
    with _empty_generation_config(model), evaluating(model):
        model.generate(
            input_ids=ids_BL.to(model.device),
            attention_mask=mask_BL.to(model.device),  # generate() derives the position ids from it
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=1,
                max_new_tokens=ends.decoding.max_new_tokens,
                pad_token_id=filler,
                use_cache=True,
                **({"cache_implementation": "static"} if static else {}),
            ),
            logits_processor=LogitsProcessorList([chosen]),
            stopping_criteria=StoppingCriteriaList([_AllEnded(chosen)]),
        )
    for request in requests:
        picker.forget(request)
    return [ends.finish(request, ids) for request, ids in zip(requests, chosen.answers, strict=False)]
