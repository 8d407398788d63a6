"""A small model of the same class as a large one: what model checks and the trial step of `validate` run on.

Widths and numbers of heads are divided by a common factor, so that what an architecture demands of its sizes still
holds; so many layers are kept that there is one of every kind. The class is called directly: no weights are read, and
nothing is sharded by the context that ZeRO-3 makes models in.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mce_llm.errors import MceLlmError
from mce_llm.running.messages import cause

# What a setting is, is told from its name: architectures have settings of their own, named alike.
_LAYERS = re.compile(r"(num_hidden_layers|(num_)?decoder_layers|n_layers?|num_layers|num_blocks)$")
# Of the other half of an encoder-decoder; some of its decoders take the number of their layers from here.
_ENCODER_LAYERS = re.compile(r"(num_)?encoder_layers$")
_OTHER_LAYERS = re.compile(
    r"n_(input|recurrent|output)_layers$|num_layers_per_stack$|depth$|num_kv_shared_layers$"
    r"|num_nextn_predict_layers$|num_mem_blocks$"
)
_HEADS = re.compile(
    r"(\w+_)?(n|num)_(\w+_)?(heads?|head_kv|query_groups)$|(\w+_)?attention_heads$|\w*n_?groups$"
)
_HEAD_SIZES = ("head_dim", "d_head", "kv_channels", "attention_head_dim", "attention_head_size", "dim_head")
_WIDTHS = re.compile(
    r"(hidden_size(_global)?|hidden_dim|d_model|n_embd|dim|emb(edding)?_(dim|size)|d_embed|n_inner|d_inner|d_ff|dff|dim_ff|lru_width"
    r"|(\w+_)?(intermediate_size(_mlp)?|ffn_dim|ffn_hidden_size|expert_size)|word_embed_proj_dim|mamba_d_ssm"
    r"|attention_hidden_size|feed_forward_size|(input|output)_embedding_size|dim_model_base)$"
)
_EXPERTS = re.compile(r"(num_local_experts|(moe_)?num_experts|n_routed_experts)$")
_CHOSEN_EXPERTS = re.compile(r"(num_experts_per_tok(en)?|num_selected_experts|moe_topk|moe_k|moe_top_k)$")
_EXPERT_GROUPS = ("n_group", "topk_group", "num_expert_group")
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size", "local_attention", "window_size")
_POSITIONS = re.compile(
    r"(max_position_embeddings|n_positions|max_target_positions|max_source_positions|max_seq_len)$"
)
_TOKENS = re.compile(r"(\w+_)?token_(id|index)$|(\w+_)?(pad|unk|mask|bos|eos)_(id|index)$")

_SMALL_WIDTH, _LARGE_WIDTH = 128, 320
_SMALL_WINDOW = 8
_FEW_EXPERTS = 4
_FEWEST_LAYERS, _MOST_LAYERS = 2, 12
_PROBE_LENGTH = 8


class ShrinkingError(MceLlmError, ValueError):
    """No small model of a class can be made; the message says what the class has against it."""


def small_model(
    model: PreTrainedModel,
    *,
    vocabulary: int | None,
    length: int,
    attention: str | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    most_parameters: int = 100_000_000,
) -> PreTrainedModel:
    """A small model of the same class with random weights.

    Args:
        model: The full model; its weights are not read, so that it may be on the meta device, sharded or quantised.
        vocabulary: Tokens that it has to know; None keeps the vocabulary.
        length: Positions that it has to know.
        attention: Its attention implementation; None leaves the choice to transformers.
        device: Where it is to be.
        dtype: The dtype of its weights.
        most_parameters: No model is made that has more.

    Raises:
        ShrinkingError: No model could be made that runs on text. One that runs, but not with labels, is returned if
            there is no better one.
    """
    layers = _layers_of_every_kind(model)
    failures, untrainable = [], None
    with _quiet(), torch.device("cpu"):
        for shrink in _CANDIDATES:
            try:
                config = shrink(model.config, layers, vocabulary, length)
                _plain(config, attention)
                small = _made(type(model), config, device, dtype, most_parameters)
            except Exception as error:  # each architecture has demands of its own on its sizes
                failures.append(cause(error))
                continue
            if _computes_a_loss(small):
                return small
            untrainable = untrainable or small
    if untrainable is not None:
        return untrainable
    raise ShrinkingError(f"no small {type(model).__name__} can be made: {failures[0]}")


def _made(
    model_class: Any,
    config: PreTrainedConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    most_parameters: int,
) -> PreTrainedModel:
    """The model, which has run once."""
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
    if size > most_parameters:
        raise ValueError(f"the smallest one has {size:,} parameters")
    model: PreTrainedModel = model_class(config).to(device=device, dtype=dtype)
    with torch.no_grad():
        model.eval()(input_ids=_probe(model), use_cache=False)
    return model


def _computes_a_loss(model: PreTrainedModel) -> bool:
    """Whether it runs as in training."""
    tokens = _probe(model)
    try:
        with torch.no_grad():
            model.train()(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens)
    except Exception:  # a candidate is tried, and there are others
        return False
    return True


def _probe(model: PreTrainedModel) -> Tensor:
    """(2, T) tokens without a meaning of their own."""
    usual = min(set(range(_PROBE_LENGTH)) - special_tokens(model.config), default=0)
    return torch.full((2, _PROBE_LENGTH), usual, device=model.device)


def special_tokens(config: PreTrainedConfig) -> set[int]:
    """The ids that a configuration gives a meaning: padding, ends, places of images."""
    found: set[int] = set()
    for part in _parts(config):
        for name, value in vars(part).items():
            if _TOKENS.match(name):
                found.update(n for n in (value if isinstance(value, list) else [value]) if _is_count(n))
    return found


def _divided(
    config: PreTrainedConfig, layers: int | None, vocabulary: int | None, length: int, *, narrow: bool = True
) -> PreTrainedConfig:
    """Fewer layers, and widths and numbers of heads divided by one factor; the sizes of heads stay."""
    small = copy.deepcopy(config)
    for part, own in zip(_parts(small), _parts(config), strict=True):
        # DBRX's settings of attention and of experts are parts, and go with the whole; towers have heads of their own.
        whole = _number(config, "hidden_size") and not _number(own, "num_attention_heads")
        factor, unit = _factor(config if whole else own) if narrow else (1, 1)
        depth = next(
            (value for name, value in vars(part).items() if _LAYERS.match(name) and _is_count(value)), 0
        )
        kept = depth if layers is None else min(layers, depth)
        for name, value in list(vars(part).items()):
            if isinstance(value, list | tuple):
                changed: Any = _shortened(name, list(value), depth, kept)
                changed = type(value)(
                    [_resized(name, n, factor, unit, kept, vocabulary, length) for n in changed]
                )
            elif _is_count(value):
                changed = _resized(name, value, factor, unit, kept, vocabulary, length)
            else:
                continue
            if changed != value:
                setattr(part, name, changed)
    return small


def _with_more_layers(
    config: PreTrainedConfig, _: int | None, vocabulary: int | None, length: int
) -> PreTrainedConfig:
    return _divided(config, _MOST_LAYERS, vocabulary, length)


def _with_all_layers(
    config: PreTrainedConfig, _: int | None, vocabulary: int | None, length: int
) -> PreTrainedConfig:
    return _divided(config, None, vocabulary, length)


def _with_all_widths(
    config: PreTrainedConfig, layers: int | None, vocabulary: int | None, length: int
) -> PreTrainedConfig:
    return _divided(config, layers, vocabulary, length, narrow=False)


def _unchanged(config: PreTrainedConfig, *_: int | None) -> PreTrainedConfig:
    return copy.deepcopy(config)


# Tried in this order.
_CANDIDATES: tuple[Callable[..., PreTrainedConfig], ...] = (
    _divided,
    _with_more_layers,
    _with_all_layers,
    _with_all_widths,
    _unchanged,
)


def _shortened(name: str, value: list[Any], depth: int, kept: int) -> list[Any]:
    """A setting with an entry for each layer, or with the numbers of some layers, for the layers that are kept."""
    if depth and len(value) == depth:
        return value[:kept]
    if re.search(r"(idx|id|ind(ex|ice)|layer)s?$", name) and value and all(_is_count(n) for n in value):
        return [n for n in value if n < kept]
    return value


def _resized(
    name: str, value: Any, factor: int, unit: int, kept: int, vocabulary: int | None, length: int
) -> Any:
    """One number of a configuration for the small model; anything else as it is."""
    if not _is_count(value):
        return value
    if _LAYERS.match(name) or _ENCODER_LAYERS.match(name):
        return min(value, kept)
    if _OTHER_LAYERS.match(name):
        return min(value, max(1, kept // 2))
    if _EXPERTS.match(name):
        return min(value, _FEW_EXPERTS)
    if _CHOSEN_EXPERTS.match(name):
        return min(value, _FEW_EXPERTS // 2)
    if name in _EXPERT_GROUPS:
        return min(value, 1)
    if name in _WINDOWS:
        return min(value, _SMALL_WINDOW)
    if _POSITIONS.match(name):
        return min(value, length)
    if _HEADS.match(name):
        return value if value == 0 else max(1, value // factor)
    if _WIDTHS.match(name):
        # Some products of matrices need rows of whole 16 bytes, and some widths are divided by the number of heads.
        even = value % factor == 0 and value // factor % 8 == 0
        return value // factor if even else -(-value // factor // unit) * unit
    if vocabulary is not None and "vocab" in name:
        return min(value, vocabulary)
    if vocabulary is not None and _TOKENS.match(name):
        return min(value, vocabulary - 1)
    return value


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _factor(part: PreTrainedConfig) -> tuple[int, int]:
    """What widths and numbers of heads are divided by, and what widths are rounded up to multiples of."""
    width, heads = _number(part, "hidden_size"), _number(part, "num_attention_heads")
    if width <= _SMALL_WIDTH:
        return 1, 1
    if not heads:
        return width // _SMALL_WIDTH, 8  # no attention, or of several kinds
    few = [n for n in (4, 2, 5, 6, 7, 8, 3, 1) if heads % n == 0]
    fitting = [n for n in few if width * n // heads <= _LARGE_WIDTH]
    chosen = fitting[0] if fitting else 1
    return heads // chosen, 8 * chosen


def _number(part: PreTrainedConfig, name: str) -> int:
    """A setting under the name that all architectures have for it; 0 where there is none."""
    stored = part.attribute_map.get(name, name)
    value = vars(part)[stored] if stored in vars(part) else getattr(part, name, None)
    return int(value) if _is_count(value) else 0


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The configuration, and those of the parts of a composite model."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for value in inner for part in _parts(value))]


def _plain(config: PreTrainedConfig, attention: str | None) -> None:
    """Take away what draws random numbers, what quantises, and what an earlier model chose."""
    config._attn_implementation = attention
    for part in _parts(config):
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and re.search(r"drop|jitter", name):
                setattr(part, name, 0.0)
        part.__dict__.pop("quantization_config", None)
        part.dtype = torch.float32


def _layers_of_every_kind(model: PreTrainedModel) -> int | None:
    """How many layers from the first on hold one of each kind; None where the layers are not found."""
    depth = _number(model.config.get_text_config(decoder=True), "num_hidden_layers")
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    stack = next((m for m in stacks if len(m) == depth), max(stacks, key=len, default=None))
    if stack is None:
        return None
    kinds = [_kind(layer) for layer in stack]
    return min(max(_FEWEST_LAYERS, *(kinds.index(kind) + 1 for kind in set(kinds))), _MOST_LAYERS)


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """What tells one kind of layer from another: classes of its parts, and their switches."""
    return tuple(
        (name, type(module), *sorted((k, v) for k, v in vars(module).items() if _is_switch(k, v)))
        for name, module in layer.named_modules()
    )


def _is_switch(name: str, value: Any) -> bool:
    return not name.startswith("_") and name != "training" and isinstance(value, bool | str | NoneType)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what libraries say about models that are made on trial."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
