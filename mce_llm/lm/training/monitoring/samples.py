"""Completions of a few fixed prompts while a model trains, so that one can read what it has learned so far."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from mce_llm.lm.heads import causal_model
from mce_llm.lm.training.monitoring.throughput import paused
from mce_llm.lm.training.monitoring.trackers import add_texts
from mce_llm.running.devices import same_random_states
from mce_llm.running.step_log import StepLog
from mce_llm.running.stop_ids import stop_ids

SAMPLES_FILE = "samples.jsonl"
# Prompts taken from the data, and rows looked at to find them.
_FROM_DATA, _ROWS_LOOKED_AT = 4, 64


class SamplesCallback(TrainerCallback):
    """Completes the prompts greedily at every multiple of `sample_steps`.

    The completions go to `samples.jsonl` in the output folder, as text to TensorBoard and as a table to W&B. All ranks
    generate the same, which engines that shard the weights need; modes and random states are put back, so the run
    ends with the same weights with and without.

    Args:
        trainer: Whose model answers; it needs a tokenizer as `processing_class`.
        sample_steps: Optimizer steps between samples; at least 1.
        prompts: Texts to continue, used without a template; or one name of a .txt file with a prompt a line or of a
            .json file with a list of texts. None: the tokens before the first trained one in the first rows of the
            evaluation data (or training data, where there are none).
        max_new_tokens: The longest completion.

    Raises:
        ValueError: No tokenizer, no prompts, or prompts that are too long for the model.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        sample_steps: int,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        tokenizer = trainer.processing_class
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(
                "sample_steps needs a tokenizer to write the completions out: pass processing_class"
            )
        self._trainer, self._tokenizer, self._steps = trainer, tokenizer, sample_steps
        if prompts:
            self._prompts = [_encoded(tokenizer, text) for text in read_prompts(prompts)]
        else:
            with same_random_state():
                self._prompts = _prompts_of_data(trainer)
        model: Any = trainer.model  # None with model_init, until training begins
        config = None if model is None else model.config.get_text_config(decoder=True)
        places = getattr(config, "max_position_embeddings", None)
        longest = max(map(len, self._prompts))
        if places is not None and longest >= places:
            raise ValueError(
                f"the longest of sample_prompts has {longest} tokens, the model has {places} positions; shorten it"
            )
        self._new_tokens = max_new_tokens if places is None else min(max_new_tokens, places - longest)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the records of steps after the checkpoint that the run is resumed from."""
        if state.is_world_process_zero:
            self._log(args).rewind(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Generate, if it is time."""
        if state.global_step % self._steps:
            return
        with paused(self._trainer), same_random_state():
            answers = self._generate()
        if not state.is_world_process_zero:
            return
        rows: list[Sequence[str]] = []
        for prompt, answer in zip(self._prompts, answers, strict=True):
            ended = not self._ends.isdisjoint(answer)
            record = {
                "prompt": self._text(prompt),
                "completion": self._text(answer),
                "tokens": len(answer),
                "finished": "eos" if ended else "length",
            }
            self._log(args).append(state.global_step, record)
            rows.append((self._text(prompt), self._text(answer)))
        add_texts(self._trainer, "samples", ("prompt", "completion"), rows, state.global_step)

    def _generate(self) -> list[list[int]]:
        """The new tokens of each prompt, EOS included."""
        tokenizer, model = self._tokenizer, cast(Any, self._trainer.model)
        filler = next(
            token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None
        )
        longest = max(map(len, self._prompts))
        ids = torch.tensor([[filler] * (longest - len(prompt)) + prompt for prompt in self._prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in self._prompts])
        device = self._trainer.args.device
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self._new_tokens,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=filler,
            use_cache=True,
        )
        with _plainly_generating(model), torch.no_grad():
            output = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
            )
        return [self._until_its_end(answer) for answer in output[:, longest:].tolist()]

    @property
    def _ends(self) -> set[int]:
        """The tokens at which the model stops once it is saved: the end of a chat's turn is not always EOS."""
        saved = stop_ids(causal_model(cast(Any, self._trainer.model)).generation_config)
        return {*saved, *stop_ids(self._tokenizer)}

    def _until_its_end(self, answer: list[int]) -> list[int]:
        place = next((at for at, token in enumerate(answer) if token in self._ends), len(answer))
        return answer[: place + 1]

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _log(self, args: TrainingArguments) -> StepLog:
        return StepLog(Path(str(args.output_dir)) / SAMPLES_FILE)


def read_prompts(given: Sequence[str]) -> list[str]:
    """The prompts themselves, or those in the one .txt or .json file that is named.

    Raises:
        ValueError: The file cannot be read or holds something else; a prompt is empty.
    """
    prompts: Any = list(given)
    if len(prompts) == 1 and Path(prompts[0]).suffix in (".txt", ".json"):
        path = Path(prompts[0])
        try:
            text = path.read_text(encoding="utf-8")
            prompts = json.loads(text) if path.suffix == ".json" else text.splitlines()
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read sample_prompts from {str(path)!r}: {error}") from error
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"sample_prompts: {path} must hold a JSON list of texts")
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError(f"sample_prompts must be texts that are not empty, got {prompts!r}")
    return prompts


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore the states of all random number generators at the end of the block."""
    states = random.getstate(), np.random.get_state()
    try:
        with same_random_states():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _plainly_generating(model: Any) -> Iterator[None]:
    """Evaluation mode and default generation settings for the block; the earlier modes and settings come back."""
    owner: Any = causal_model(model)
    training = [module for module in model.modules() if module.training]
    settings, owner.generation_config = owner.generation_config, GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        owner.generation_config = settings
        for module in training:
            module.training = True


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = [int(token) for token in tokenizer(text)["input_ids"]]
    while ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
        ids.pop()
    if not ids:
        raise ValueError(f"sample_prompts: {text!r} has no tokens")
    return ids


def _prompts_of_data(trainer: Trainer) -> list[list[int]]:
    """The tokens before the first trained one of each row, or its first half where every token is trained."""
    data: Any = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    if isinstance(data, dict):
        data = next(iter(data.values()), None)
    found: list[list[int]] = []
    if data is not None and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        for row in islice((data[index] for index in range(len(data))), _ROWS_LOOKED_AT):
            if "input_ids" not in row or "labels" not in row:
                break
            ids, labels = (list(map(int, row[name])) for name in ("input_ids", "labels"))
            first = next((place for place, label in enumerate(labels) if label != -100), 0)
            prompt = ids[: first or len(ids) // 2]
            if prompt and prompt not in found:
                found.append(prompt)
            if len(found) == _FROM_DATA:
                break
    if not found:
        raise ValueError(
            "sample_steps found no prompts in the data (rows need input_ids and labels, and a length); "
            "give sample_prompts"
        )
    return found
