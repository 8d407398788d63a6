"""The check of a model's class and configuration, on a small model of both, before anything is trained.

Three assumptions are tested rather than believed: with labels the model computes causal cross-entropy, so that the
patch changes nothing but adds its own part; no logit depends on a later token; packed examples do not see each other.
"""

from __future__ import annotations

import inspect
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mce_llm.lm.checks.measurements import (
    LENGTH,
    ForwardError,
    future_seen,
    loss_disagreement,
    packed_leak,
    seeded,
    stir,
)
from mce_llm.lm.checks.shrinking import ShrinkingError, small_model, special_tokens
from mce_llm.lm.heads import UnsupportedModelError, causal_model, find_head

_VOCABULARY, _POSITIONS = 512, 64
# The attention implementations that run anywhere.
_PLAIN = (None, "eager", "sdpa")


class UncheckedModelWarning(UserWarning):
    """What is assumed of a model could not be checked, and why."""


@dataclass(frozen=True)
class ModelCheck:
    """What was found out about one class and configuration.

    Attributes:
        model_class: The class's name.
        problem: Why it is refused; None where nothing speaks against it.
        unchecked: What could not be checked, and why; empty where everything was.
        attention: The attention implementation that the small model had; None without one.
        parameters: Parameters of the small model; 0 where there is none.
        seconds: What the check took when it was made.
    """

    model_class: str
    problem: str | None = None
    unchecked: tuple[str, ...] = ()
    attention: str | None = None
    parameters: int = 0
    seconds: float = 0.0


# Of this process: what was found out about (class, configuration, attention implementation, packing).
_FOUND: dict[tuple[Any, ...], ModelCheck] = {}
# What a configuration says that changes nothing of the small model.
_BESIDE_THE_POINT = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def is_flash(attention: str | None) -> bool:
    """Whether an attention implementation is FlashAttention, which keeps packed examples apart in a single row alone."""
    return attention is not None and "flash" in attention


def check_model(model: nn.Module, *, packing: bool = False, attention: str | None = None) -> ModelCheck:
    """Refuse a model that the losses, or packing, would silently be wrong for.

    The check runs on a small model of the same class and configuration, float32 on the CPU (where FlashAttention is
    asked for and there is a GPU: bfloat16 there). It takes about a second, once for each class and configuration, and
    leaves the state of random number generators as it is. Weights are not read.

    Args:
        model: A causal language model, or a `peft` model around one; may be on the meta device.
        packing: Rows hold several examples, see `pack_examples`.
        attention: The attention implementation that training will use; by default the model's.

    Returns:
        What was found out. What could not be checked is in it, and a warning.

    Raises:
        UnsupportedModelError: The model is one that the losses or packing would be wrong for.
    """
    found = examine_model(model, packing=packing, attention=attention)
    if found.problem is not None:
        raise UnsupportedModelError(found.problem)
    for text in found.unchecked:
        warnings.warn(text, UncheckedModelWarning, stacklevel=2)
    return found


def examine_model(model: nn.Module, *, packing: bool = False, attention: str | None = None) -> ModelCheck:
    """As `check_model`, with a refusal as a value.

    Raises:
        UnsupportedModelError: `model` is no causal language model at all.
    """
    inner = causal_model(model)
    wanted = attention or inner.config._attn_implementation
    settings = {k: v for k, v in inner.config.to_dict().items() if k not in _BESIDE_THE_POINT}
    key = (type(inner), json.dumps(settings, sort_keys=True, default=str), wanted)
    alone = _found((*key, False), lambda: _loss_check(inner, wanted))
    if not packing or alone.problem is not None:
        return alone
    packed = _found((*key, True), lambda: _packing_check(inner, wanted))
    unchecked = (*alone.unchecked, *packed.unchecked)
    return replace(packed, unchecked=unchecked, seconds=alone.seconds + packed.seconds)


def _found(key: tuple[Any, ...], check: Callable[[], ModelCheck]) -> ModelCheck:
    if key not in _FOUND:
        begun = time.perf_counter()
        with seeded(0, _gpu() if torch.cuda.is_available() else torch.device("cpu")):
            found = check()
        _FOUND[key] = replace(found, seconds=time.perf_counter() - begun)
    return _FOUND[key]


def _loss_check(model: PreTrainedModel, wanted: str | None) -> ModelCheck:
    """Is its loss causal cross-entropy, without a view of what comes later?"""
    plain = wanted if wanted in _PLAIN else None
    try:
        small = _stirred(model, plain)
        problem = _loss_problem(small, _tokens(small))
    except (ShrinkingError, ForwardError) as error:
        if not torch.cuda.is_available():
            return _cannot_run(model, error)
        try:  # there are kernels that run on a GPU alone
            small = _stirred(model, plain, on_gpu=True)
            problem = _loss_problem(small, _tokens(small))
        except (ShrinkingError, ForwardError) as again:
            return _cannot_run(model, again)
    return replace(_described(small), problem=problem)


def _cannot_run(model: PreTrainedModel, error: Exception) -> ModelCheck:
    name = type(model).__name__
    if isinstance(error, ForwardError):
        return ModelCheck(name, problem=f"{name}: its own forward, given text and labels, fails: {error}")
    try:
        find_head(model)
    except UnsupportedModelError as refusal:
        # Without weights some forwards cannot run at all, which tells nothing of the model.
        if refusal.__cause__ is None or not any(p.is_meta for p in model.parameters()):
            return ModelCheck(name, problem=str(refusal))
    what = "that its loss is causal cross-entropy, and that no logit depends on a later token"
    return ModelCheck(name, unchecked=(f"not checked: {what}: {error}",))


def _loss_problem(small: PreTrainedModel, tokens_BT: Tensor) -> str | None:
    name = type(small).__name__
    try:
        find_head(small)
        if (text := future_seen(small, tokens_BT)) is not None:
            return f"{name} is no causal language model: {text}; use a decoder, or set is_decoder=True in its config"
        if (text := loss_disagreement(small, tokens_BT)) is not None:
            return f"{name}: {text}; the matrix loss goes with causal cross-entropy, so take a decoder-only model"
    except UnsupportedModelError as error:
        return str(error)
    return None


def _packing_check(model: PreTrainedModel, wanted: str | None) -> ModelCheck:
    """Are packed examples kept apart, by the attention implementation that will be used if this machine has it?"""
    name, here, instead = type(model).__name__, wanted, ""
    cuda = torch.cuda.is_available()
    if wanted not in _PLAIN and not cuda:  # FlexAttention has a form for CPUs, which takes minutes to compile
        here, instead = None, "it needs a GPU"
    try:
        small = _stirred(model, here, on_gpu=cuda and here not in _PLAIN)
    except ShrinkingError as error:
        if here in _PLAIN:
            return ModelCheck(name, unchecked=(f"not checked: that packed examples are kept apart: {error}",))
        here, instead = None, str(error)
        try:
            small = _stirred(model, None)
        except ShrinkingError:
            return ModelCheck(name, unchecked=(f"not checked: that packed examples are kept apart: {error}",))
    text = packed_leak(small, _tokens(small), one_row=is_flash(here))
    found = _described(small)
    if text is not None:
        takes_positions = "position_ids" in inspect.signature(small.forward).parameters
        reason = "" if takes_positions else ": it takes no position_ids"
        return replace(
            found, problem=f"{name}: {text}{reason}; set packing: false, or take a collator that pads"
        )
    if instead:
        found = replace(found, unchecked=(_checked_with(found.attention, wanted, instead),))
    return found


def _checked_with(attention: str | None, wanted: str | None, reason: str) -> str:
    return f"that packed examples are kept apart was checked with {attention} attention in place of {wanted}: {reason}"


def _described(small: PreTrainedModel) -> ModelCheck:
    size = sum(p.numel() for p in small.parameters())
    return ModelCheck(type(small).__name__, attention=small.config._attn_implementation, parameters=size)


def _stirred(model: PreTrainedModel, attention: str | None, *, on_gpu: bool = False) -> PreTrainedModel:
    device = _gpu() if on_gpu else torch.device("cpu")
    dtype = torch.bfloat16 if is_flash(attention) else torch.float32
    small = small_model(
        model, vocabulary=_VOCABULARY, length=_POSITIONS, attention=attention, device=device, dtype=dtype
    )
    stir(small)
    return small


def _gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _tokens(model: PreTrainedModel) -> Tensor:
    """(2, T) tokens, none of them one that the configuration gives a meaning."""
    ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = min(len(layer.weight) for layer in ends if layer is not None)
    usual = sorted(set(range(rows)) - special_tokens(model.config)) or [0]
    return torch.tensor(usual)[torch.randint(len(usual), (2, LENGTH))].to(model.device)
