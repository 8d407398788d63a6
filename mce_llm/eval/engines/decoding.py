"""How answers are decoded: the settings, the choice of each next token, and where an answer ends.

The engines (`bucketed`, `continuous`, `vllm_backend`) share what is here, so that the same settings give the same
answers whichever of them runs, with whatever batch size.

Shapes: B rows, V the vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mce_llm.eval.errors import GenerationError
from mce_llm.eval.items import Finished, Generation
from mce_llm.eval.judging.reasoning import is_thinking_tag
from mce_llm.matrix.precision import exact_dtype
from mce_llm.running.messages import raise_all

_PARTIAL_TOKENS = 8  # tokens that may decode to nothing by themselves: special ones, and parts of a character
_REPLACEMENT = "\ufffd"  # what the bytes of an unfinished character decode to


@dataclass(frozen=True)
class Decoding:
    """The settings that answers depend on, apart from model and prompt.

    Attributes:
        max_new_tokens: The most tokens to add to a prompt.
        stop: Strings that end an answer and are cut off with all that follows.
        temperature: 0 for the most probable token, else the logits' divisor before sampling.
        top_p: Sample among the most probable tokens that together reach this probability; 1 for all.
        top_k: Sample among this many of the most probable tokens; 0 for all.
        num_samples: Answers to each prompt.
        seed: With temperature: answer k to prompt i depends on seed, i and k, and on no other prompt.
    """

    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(self.stop):
            raise GenerationError(f"stop must be a list of non-empty strings, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))
        raise_all(
            decoding_problems(
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                num_samples=self.num_samples,
            ),
            GenerationError,
        )


def decoding_problems(
    *, max_new_tokens: int, temperature: float, top_p: float, top_k: int, num_samples: int
) -> list[str]:
    """Say what is out of range among the settings of `Decoding`, one text each."""
    problems = [
        f"{name} must be at least 1, got {value}"
        for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples))
        if value < 1
    ]
    if not 0 <= temperature < float("inf"):
        problems.append(f"temperature must be 0 (greedy) or more, got {temperature}; 0.7 is usual")
    if not 0 < top_p <= 1:
        problems.append(f"top_p must be in (0, 1], got {top_p}; 1 samples from all tokens")
    if top_k < 0:
        problems.append(f"top_k must be 0 (all tokens) or more, got {top_k}")
    if temperature == 0:
        if num_samples > 1:
            problems.append(
                f"num_samples is {num_samples} and temperature 0: greedy answers would all be the same; set "
                "a temperature, 0.7 say"
            )
        if top_p < 1 or top_k:
            problems.append("top_p and top_k have no effect with temperature 0; set a temperature")
    return problems


@dataclass(frozen=True)
class Request:
    """One answer that is wanted: the prompt's place in the sequence, which of its samples, and its token ids."""

    index: int
    sample: int
    prompt: tuple[int, ...]


def wanted_requests(
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    decoding: Decoding,
    done: Collection[tuple[int, int]] = (),
) -> list[Request]:
    """Return the answers that are wanted: every sample of every prompt, but for those that are `done`."""
    return [
        Request(number, sample, tuple(prompt))
        for number, prompt in zip(numbers, prompts, strict=True)
        for sample in range(decoding.num_samples)
        if (number, sample) not in done
    ]


class Picker:
    """Chooses the next token of each row: the most probable, or sampled with the row's own random numbers."""

    def __init__(self, decoding: Decoding):
        self.decoding = decoding
        self._randoms: dict[tuple[int, int], random.Random] = {}

    def __call__(
        self, logits_BV: torch.Tensor, rows: Sequence[Request | None], position: int | None
    ) -> list[int]:
        """Return the token of each row; rows that are None get any.

        Args:
            logits_BV: Logits of the next token.
            rows: Whose they are, in order.
            position: Which new token this is, for the message; None where it differs between rows.

        Returns:
            B token ids.

        Raises:
            GenerationError: Logits are NaN or +infinite.
        """
        largest_B, tokens_B = logits_BV.max(dim=-1)  # NaN where any is
        bad_B = ~(largest_B < torch.inf)
        if self.decoding.temperature:
            tokens_B = self._sample(logits_BV, rows)
        tokens, bad = torch.stack([tokens_B, bad_B.long()]).tolist()  # one transfer from the device
        if broken := [row for row, is_bad in zip(rows, bad, strict=True) if is_bad and row is not None]:
            where = "" if position is None else f" at new token {position}"
            raise GenerationError(
                f"the model's logits are NaN or infinite for {len(broken)} of {len(rows)} prompts of a "
                f"batch{where} (first: prompt {broken[0].index}); its weights may hold NaN after a diverged training, "
                "or float16 overflowed: look at the training loss, or use --dtype float32"
            )
        return tokens

    def forget(self, row: Request) -> None:
        """Drop the random numbers of a row that has ended."""
        self._randoms.pop((row.index, row.sample), None)

    def _sample(self, logits_BV: torch.Tensor, rows: Sequence[Request | None]) -> torch.Tensor:
        """Invert the cumulative distribution at one uniform number a row, tokens sorted by probability."""
        scaled_BV = logits_BV.float() / self.decoding.temperature
        sorted_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
        if self.decoding.top_k:
            sorted_BV[:, self.decoding.top_k :] = -torch.inf
        # In float64: over 128,000 tokens float32 sums would lose the rarest.
        cumulative_BV = sorted_BV.to(exact_dtype(sorted_BV.device)).softmax(dim=-1).cumsum(dim=-1)
        if self.decoding.top_p < 1:
            kept_B = (cumulative_BV < self.decoding.top_p).sum(dim=-1, keepdim=True)
            kept_B = kept_B.clamp(max=cumulative_BV.shape[-1] - 1)
            total_B = cumulative_BV.gather(-1, kept_B)
        else:
            total_B = cumulative_BV[:, -1:]
        uniform_B = torch.tensor([[self._uniform(row)] for row in rows], dtype=torch.float64)
        place_B = (cumulative_BV <= uniform_B.to(total_B) * total_B).sum(dim=-1, keepdim=True)
        return order_BV.gather(-1, place_B.clamp(max=order_BV.shape[-1] - 1)).squeeze(-1)

    def _uniform(self, row: Request | None) -> float:
        if row is None:
            return 0.0
        key = (row.index, row.sample)
        if key not in self._randoms:
            self._randoms[key] = random.Random(f"{self.decoding.seed}/{row.index}/{row.sample}")
        return self._randoms[key].random()


class Ends:
    """Knows where answers end: EOS, a stop string however it falls into tokens, or the limit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_token_ids: Sequence[int], decoding: Decoding):
        self.tokenizer = tokenizer
        self.end_token_ids = frozenset(end_token_ids)
        self.decoding = decoding
        # A string of n bytes has n tokens at most, apart from tokens that decode to nothing.
        self._tail = max((len(text.encode()) for text in decoding.stop), default=0) + _PARTIAL_TOKENS
        self._last_characters = frozenset(text[-1] for text in decoding.stop)
        # SentencePiece drops the space of a token that is decoded alone.
        self._ends_in_space = any(character.isspace() for character in self._last_characters)
        self._may_complete: dict[int, bool] = {}
        self._kept = special_tags(tokenizer)

    def reached(self, new_ids: Sequence[int]) -> bool:
        """Whether the last of an answer's tokens ended it; to be asked after each token."""
        return (
            new_ids[-1] in self.end_token_ids
            or len(new_ids) >= self.decoding.max_new_tokens
            or (bool(self.decoding.stop) and self._completes(new_ids[-1]) and self._has_stop(new_ids))
        )

    def finish(self, row: Request, new_ids: Sequence[int]) -> Generation:
        """Cut an answer whose end was reached and decode it."""
        ended = new_ids[-1] in self.end_token_ids
        text, found = cut_at_stop(self.decode(new_ids[: len(new_ids) - ended]), self.decoding.stop)
        finished: Finished = "stop" if found else "eos" if ended else "length"
        return Generation(row.index, row.sample, text, len(new_ids), finished)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode without special tokens, but for the tags around thoughts, which some tokenizers have as special ones."""
        pieces, start = [], 0
        for place, token in enumerate(ids):
            if token in self._kept:
                pieces += [self._decode(ids[start:place]), self._kept[token]]
                start = place + 1
        return "".join([*pieces, self._decode(ids[start:])]) if pieces else self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _has_stop(self, new_ids: Sequence[int]) -> bool:
        return cut_at_stop(self.decode(new_ids[-self._tail :]), self.decoding.stop)[1]

    def _completes(self, token: int) -> bool:
        """Whether a token could hold the last character of a stop string; most cannot, and need no decoding of the tail."""
        if token not in self._may_complete:
            text = self.decode([token])
            self._may_complete[token] = (
                self._ends_in_space
                or not text
                or _REPLACEMENT in text
                or not self._last_characters.isdisjoint(text)
            )
        return self._may_complete[token]


def special_tags(tokenizer: PreTrainedTokenizerBase, tags: Sequence[str] = ()) -> dict[int, str]:
    """Return the special tokens of a tokenizer that are tags around thoughts: id → text."""
    return {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special and is_thinking_tag(added.content, tags)
    }


def base_model(model: Any) -> Any:
    """Return the transformers model that an adapter is on, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut a text at the earliest of the stop strings; say whether there was one."""
    places = [place for string in stop if (place := text.find(string)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients, for as long as one call of the model takes; all is left as it was."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if training:
            model.train()
