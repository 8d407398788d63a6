"""Answers from a batch that stays full: a row that has ended makes room for the next prompt at once.

What `generate` of transformers does for a whole batch ends with its longest answer; here no row waits for another.
Tokens that all prompts begin with (worked examples, instructions) are computed once. Settings, choice of tokens and ends
of answers are in `decoding`; the cache in `key_value_rows`.

Shapes: N new prompts, L tokens of the longest of them after the common beginning, B rows, V the vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from mce_llm.eval.engines.decoding import Ends, Picker, Request, base_model, evaluating
from mce_llm.eval.engines.key_value_rows import KeyValueRows
from mce_llm.eval.items import Generation

_SHORTEST_COMMON = 16  # tokens; a shorter common beginning is not worth handling apart
_USUAL_TOKENS = 128  # of an answer, until some have ended
_PLAIN_LAYERS = {"full_attention", "sliding_attention"}


def continuous_problem(model: Any) -> str | None:
    """Say why a model cannot be run row by row, or None where it can.

    Args:
        model: A causal language model.

    Returns:
        The reason.
    """
    base = base_model(model)
    if getattr(base, "_is_stateful", False):
        return f"{type(base).__name__} keeps a state that is no key-value cache"
    config = base.config.get_text_config()
    if other := sorted(set(getattr(config, "layer_types", None) or ()) - _PLAIN_LAYERS):
        return f"{type(base).__name__} has layers of type {', '.join(other)}"
    if getattr(config, "num_kv_shared_layers", 0):
        return f"{type(base).__name__} shares keys and values between layers"
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return f"{type(base).__name__} takes no position_ids"
    return None


def answer_continuously(
    model: Any, requests: Sequence[Request], picker: Picker, ends: Ends, batch_size: int
) -> Iterator[Generation]:
    """Answer requests in their order, `batch_size` at a time.

    Args:
        model: A model that `continuous_problem` finds nothing wrong with, in evaluation mode.
        requests: What to answer.
        picker: Chooses tokens.
        ends: Knows where answers end.
        batch_size: Rows.

    Yields:
        The answers as they end.
    """
    if requests:
        yield from _Batch(model, requests, picker, ends, min(batch_size, len(requests))).run()


class _Batch:
    def __init__(self, model: Any, requests: Sequence[Request], picker: Picker, ends: Ends, rows: int):
        self.model = model
        self.waiting = deque(requests)
        self.picker = picker
        self.ends = ends
        self.slots: list[Request | None] = [None] * rows
        self.new_ids: list[list[int]] = [[] for _ in range(rows)]
        self.states = KeyValueRows(rows, model.device)
        self.common = _common_beginning(requests)
        self.beginning: DynamicCache | None = None
        self.ended = self.ended_tokens = 0
        base = base_model(model)
        parameters = inspect.signature(base.forward).parameters
        self.keeps_logits = "logits_to_keep" in parameters
        self.cache_name = (
            "cache" if "cache" in parameters else "past_key_values"
        )  # as from transformers 5.24 on

    def run(self) -> Iterator[Generation]:
        while self.waiting or self.active:
            yield from self._admit()
            if self.active:
                yield from self._step()

    @property
    def active(self) -> list[int]:
        return [row for row, request in enumerate(self.slots) if request is not None]

    def _admit(self) -> Iterator[Generation]:
        """Fill empty rows, several at once: a forward pass for each row alone would cost more than the rows' waiting.

        Reading new prompts takes about as long as a step. Where answers have T tokens, B/T rows become free at each step,
        and waiting for k of them wastes k²T/2B² steps: together least, for each row, at k = B·√(2/T).
        """
        free = [row for row, request in enumerate(self.slots) if request is None]
        mean_tokens = self.ended_tokens / self.ended if self.ended else _USUAL_TOKENS
        if self.waiting and len(free) >= max(1, int(len(self.slots) * min(1.0, math.sqrt(2 / mean_tokens)))):
            rows = free[: len(self.waiting)]
            new = [self.waiting.popleft() for _ in rows]
            yield from self._begin(rows, new)
        elif not self.waiting and len(self.active) * 2 <= len(self.slots):
            self._shrink()

    def _begin(self, rows: Sequence[int], new: Sequence[Request]) -> Iterator[Generation]:
        prompts = list(
            dict.fromkeys(request.prompt for request in new)
        )  # samples of one question share its states
        states, logits_NV = self._read(prompts)
        places = torch.tensor([prompts.index(request.prompt) for request in new], device=self.model.device)
        if len(prompts) < len(new):
            with torch.inference_mode():
                states.batch_select_indices(places)
        self.states.put(rows, [len(request.prompt) for request in new], states)
        for row, request, token in zip(rows, new, self.picker(logits_NV[places], new, 1), strict=True):
            self.slots[row], self.new_ids[row] = request, [token]
            if self.ends.reached(self.new_ids[row]):
                yield self._end(row)

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> tuple[DynamicCache, torch.Tensor]:
        """Run the model over new prompts; return their states and the logits (N, V) of their first new token.

        Shorter prompts are padded on the right: no token attends to what comes after it, so no mask is needed.
        """
        tails = [prompt[self.common :] for prompt in prompts]
        longest = max(map(len, tails))
        ids_NL = self._ids([[*tail, *[0] * (longest - len(tail))] for tail in tails])
        new = DynamicCache()
        if self.common:
            layers: list[Any] = self._beginning(prompts[0]).layers
            for place, layer in enumerate(layers):
                keys, values = (
                    states.expand(len(prompts), -1, -1, -1) for states in (layer.keys, layer.values)
                )
                new.update(keys, values, place)
        last = [len(tail) - 1 for tail in tails]
        kept = sorted(set(last))
        positions_L = torch.arange(self.common, self.common + longest, device=ids_NL.device)
        logits = self._forward(
            ids_NL,
            new,
            attention_mask=ids_NL.new_ones(len(prompts), self.common + longest),
            position_ids=positions_L.expand_as(ids_NL),
            keep=torch.tensor(kept, device=ids_NL.device),
        )
        rows = torch.arange(len(prompts), device=logits.device)
        return new, logits[rows, [kept.index(place) for place in last]]

    def _beginning(self, prompt: tuple[int, ...]) -> DynamicCache:
        if self.beginning is None:
            ids_1L = self._ids([prompt[: self.common]])
            self.beginning = DynamicCache()
            self._forward(
                ids_1L,
                self.beginning,
                attention_mask=torch.ones_like(ids_1L),
                position_ids=torch.arange(self.common, device=ids_1L.device)[None],
                keep=torch.tensor([self.common - 1], device=ids_1L.device),
            )
        return self.beginning

    def _step(self) -> Iterator[Generation]:
        """One more token for every active row."""
        active = self.active
        self.states.tidy(active)
        logits_BV = self._forward(
            self._ids([ids[-1:] or [0] for ids in self.new_ids]),
            self.states.cache,
            attention_mask=self.states.mask_BC,
            position_ids=self._ids([[length] for length in self.states.lengths]),
        )[:, -1]
        self.states.advance(active)
        tokens = self.picker(logits_BV, self.slots, None)
        for row in active:
            self.new_ids[row].append(tokens[row])
            if self.ends.reached(self.new_ids[row]):
                yield self._end(row)

    def _end(self, row: int) -> Generation:
        request = self.slots[row]
        assert request is not None
        answer = self.ends.finish(request, self.new_ids[row])
        self.picker.forget(request)
        self.ended, self.ended_tokens = self.ended + 1, self.ended_tokens + answer.n_tokens
        self.slots[row], self.new_ids[row] = None, []
        return answer

    def _shrink(self) -> None:
        rows = self.active
        if rows:
            self.states.keep(rows)
            self.slots = [self.slots[row] for row in rows]
            self.new_ids = [self.new_ids[row] for row in rows]

    def _ids(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(rows, device=self.model.device)

    def _forward(
        self, ids: torch.Tensor, states: Any, *, keep: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """Return logits at the positions `keep`, or at all."""
        if keep is not None and self.keeps_logits:
            inputs["logits_to_keep"] = keep
        inputs[self.cache_name] = states
        with evaluating(self.model):
            logits = self.model(input_ids=ids, use_cache=True, **inputs).logits
        return logits if keep is None or self.keeps_logits else logits[:, keep]


def _common_beginning(requests: Sequence[Request]) -> int:
    """Count the tokens that all prompts begin with, leaving at least one to each."""
    shortest = min((request.prompt for request in requests), key=len)
    longest = min(len(shortest) - 1, max(len(request.prompt) for request in requests))
    for request in requests:
        while request.prompt[:longest] != shortest[:longest]:
            longest -= 1
    return longest if longest >= _SHORTEST_COMMON else 0
