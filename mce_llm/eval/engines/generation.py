"""Answers of a Hugging Face causal language model to many prompts: checks, order, and the choice of the engine.

Prompts are token ids already, and nothing is set on a tokenizer that others share. Loading models and judging answers
are done elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mce_llm.eval.engines.bucketed import answer_in_buckets
from mce_llm.eval.engines.continuous import answer_continuously, continuous_problem
from mce_llm.eval.engines.decoding import Decoding, Ends, Picker, wanted_requests
from mce_llm.eval.errors import GenerationError
from mce_llm.eval.items import Generation

BATCHINGS = ("auto", "continuous", "bucketed", "static")
"""How prompts share the model: rows that are refilled one by one; batches of like length; the same with a static cache."""


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding | None = None,
    *,
    indices: Sequence[int] | None = None,
    done: Collection[tuple[int, int]] = (),
    end_token_ids: Sequence[int] | None = None,
    batch_size: int = 8,
    batching: str = "auto",
) -> Iterator[Generation]:
    """Answer prompts, the longest first; greedily unless a temperature is set.

    The settings of `model.generation_config` (sampling, penalties, ...) do not count, only those of `decoding`. In
    exact arithmetic the answers do not depend on `batch_size` and `batching`, sampled ones included.

    Args:
        model: A causal language model, perhaps with an adapter. It is in evaluation mode whenever it runs.
        tokenizer: Used to decode alone.
        prompts: Token ids, special tokens included; none may be empty.
        decoding: The settings; by default greedy with 512 new tokens.
        indices: The number of each prompt, by which its random numbers are drawn and its answers are named; by
            default its place.
        done: (index, sample) of answers that are not wanted.
        end_token_ids: Ids that end an answer; by default the tokenizer's EOS.
        batch_size: Prompts at a time.
        batching: One of `BATCHINGS`; `auto` is continuous for models that allow it, and bucketed for others.

    Yields:
        The answers as they are ready: not in the order of the prompts, each exactly once.

    Raises:
        GenerationError: If an argument is out of range, a prompt is empty, too long for the model or has ids
            outside of its vocabulary, the model's logits are not numbers, or it cannot be run as asked.
    """
    decoding = decoding or Decoding()
    numbers = range(len(prompts)) if indices is None else indices
    ends = Ends(tokenizer, _end_ids(tokenizer, end_token_ids), decoding)
    check_prompts(
        prompts,
        numbers,
        rows=model.get_input_embeddings().weight.shape[0],
        longest=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        max_new_tokens=decoding.max_new_tokens,
        batch_size=batch_size,
    )
    batching = choose_batching(model, batching)
    wanted = wanted_requests(prompts, numbers, decoding, done)
    wanted.sort(key=lambda request: (-len(request.prompt), request.index, request.sample))
    picker = Picker(decoding)
    if batching == "continuous":
        yield from answer_continuously(model, wanted, picker, ends, batch_size)
    else:
        yield from answer_in_buckets(model, wanted, picker, ends, batch_size, static=batching == "static")


def choose_batching(model: Any, batching: str = "auto") -> str:
    """Return the engine that `generate` takes for a model.

    Args:
        model: The model.
        batching: One of `BATCHINGS`.

    Returns:
        The same, `auto` resolved.

    Raises:
        GenerationError: It is unknown, or the model cannot be run like that.
    """
    if batching not in BATCHINGS:
        raise GenerationError(f"batching must be one of {', '.join(BATCHINGS)}, got {batching!r}")
    if batching not in ("auto", "continuous"):
        return batching
    problem = continuous_problem(model)
    if problem and batching == "continuous":
        raise GenerationError(f"{problem}; use batching bucketed")
    return "bucketed" if problem else "continuous"


def _end_ids(tokenizer: PreTrainedTokenizerBase, end_token_ids: Sequence[int] | None) -> list[int]:
    if end_token_ids is None:
        end_token_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not end_token_ids:
        raise GenerationError("no token ends an answer: the tokenizer has no EOS; pass end_token_ids")
    return list(dict.fromkeys(int(token) for token in end_token_ids))


def check_prompts(
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    *,
    rows: int,
    longest: int | None,
    max_new_tokens: int,
    batch_size: int,
) -> None:
    """Refuse what no engine can answer.

    Args:
        prompts: Token ids.
        numbers: The number of each prompt.
        rows: Ids that the model knows.
        longest: Positions that it knows; None where it says nothing.
        max_new_tokens: The most tokens that are added to a prompt.
        batch_size: Prompts at a time.

    Raises:
        GenerationError: If an argument is out of range, or a prompt is empty, too long or of another vocabulary.
    """
    if batch_size < 1:
        raise GenerationError(f"batch_size must be at least 1, got {batch_size}")
    if len(numbers) != len(prompts) or len(set(numbers)) != len(prompts):
        raise GenerationError(
            f"indices must number the {len(prompts)} prompts, each differently, got {numbers!r}"
        )
    for index, prompt in zip(numbers, prompts, strict=True):
        if not len(prompt):
            raise GenerationError(f"prompt {index} has no tokens")
        if not 0 <= min(prompt) <= max(prompt) < rows:
            raise GenerationError(
                f"prompt {index} has token id {max(prompt)}, but the model knows ids below {rows}: the tokenizer "
                "does not belong to the model"
            )
        if longest is not None and len(prompt) + max_new_tokens > longest:
            room = longest - len(prompt)
            lower = f"lower max_new_tokens to {room} or " if room > 0 else ""
            raise GenerationError(
                f"prompt {index} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}, together more "
                f"than the {longest} positions of the model; {lower}leave the prompt out"
            )
