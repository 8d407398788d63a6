"""One forward and backward pass of a shrunken model of a recipe's architecture, with the recipe's own loss.

Same model type, same head, same vocabulary and adapters; two layers and a fraction of the width. What would fail in a
run for reasons of architecture (a head that the loss cannot read, a parameter that no gradient reaches) fails here, in
seconds and on any machine.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from mce_llm.data import IGNORE_INDEX, CompletionCollator
from mce_llm.finetuning.adapters import with_lora
from mce_llm.finetuning.configuration import Recipe
from mce_llm.finetuning.settings import ModelSourceError
from mce_llm.lm import patch_model
from mce_llm.running.messages import cause

_LAYERS = 2
_ROWS = 2
_LENGTH = 256
# Sizes of the shrunken model, tried in this order: some architectures want wider heads, or no change of width at all.
_HEAD_SIZES = (16, 32, 64)
_HEADS = 4
_MOST_PARAMETERS = 400_000_000


@dataclass(frozen=True)
class TrialStep:
    """What one step of the shrunken model gave.

    Attributes:
        parameters: Parameters of the shrunken model.
        trained: Trained ones, tensors.
        loss: CE + λ · MCE, nats.
        cross_entropy: CE, nats.
        matrix_cross_entropy: MCE, nats; None where λ is 0.
        without_gradient: Trained parameters that got no gradient.
        not_finite: Trained parameters whose gradient is not finite.
    """

    parameters: int
    trained: int
    loss: float
    cross_entropy: float
    matrix_cross_entropy: float | None
    without_gradient: list[str]
    not_finite: list[str]


def shrunken_config(config: PreTrainedConfig, head_size: int | None) -> PreTrainedConfig:
    """The configuration of a small model of the same kind.

    Args:
        config: That of the full model; left as it is.
        head_size: Width of its attention heads, from which the other widths follow; None keeps all widths and takes
            layers away alone.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    changes: dict[str, Any] = {"num_hidden_layers": _LAYERS}
    if head_size is not None:
        heads = int(text.num_attention_heads)
        key_heads = int(getattr(text, "num_key_value_heads", None) or heads)
        width = _HEADS * head_size
        changes |= {
            "hidden_size": width,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS if key_heads == heads else 1 if key_heads == 1 else 2,
            "head_dim": head_size,
            "intermediate_size": 2 * width,
            "moe_intermediate_size": width,
            "shared_expert_intermediate_size": width,
        }
        if getattr(text, "word_embed_proj_dim", None) == text.hidden_size:
            changes["word_embed_proj_dim"] = width
    experts = ("num_local_experts", "num_experts", "n_routed_experts")
    changes |= {name: min(int(n), 4) for name in experts if (n := getattr(text, name, None))}
    changes |= {name: min(int(n), 2) for name in ("num_experts_per_tok",) if (n := getattr(text, name, None))}
    for name, value in changes.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, value)
    if isinstance(kinds := getattr(text, "layer_types", None), list):
        # One of each kind of layer, if two are enough for that.
        text.layer_types = list(dict.fromkeys(kinds))[:_LAYERS] * _LAYERS
        text.layer_types = text.layer_types[:_LAYERS]
    return small


def shrunken_model(
    config: PreTrainedConfig, *, attention: str | None, trust_remote_code: bool = False
) -> nn.Module:
    """A small model of the same kind, float32, with random weights.

    Args:
        config: That of the full model.
        attention: eager keeps it; what this machine may lack (FlashAttention) becomes the default.
        trust_remote_code: As for the full model.

    Raises:
        ModelSourceError: No small model could be made.
    """
    failures: list[str] = []
    for head_size in (*_HEAD_SIZES, None):
        small = shrunken_config(config, head_size)
        small.dtype = torch.float32
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if attention == "eager":
            options["attn_implementation"] = attention
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModelForCausalLM.from_config(small, **options).parameters())
            if size > _MOST_PARAMETERS:
                raise ValueError(f"still {size:,} parameters")
            model: nn.Module = AutoModelForCausalLM.from_config(small, **options).float()
            model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
            return model
        except Exception as error:  # each architecture has ties of its own between its sizes
            failures.append(cause(error))
    raise ModelSourceError(f"no small model of the type {config.model_type!r} could be made: {failures[0]}")


def try_step(
    recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> TrialStep:
    """One forward and backward pass.

    Args:
        recipe: Loss, adapters and gradient checkpointing are read.
        config: That of the full model.
        tokenizer: Its tokenizer.
        rows: Tokenised examples, see `examine_data`.

    Raises:
        ModelSourceError: No small model can be made, or adapters do not fit.
        UnsupportedModelError: A head that the losses would be wrong for.
        GeometryError: Embeddings without geometry.
    """
    settings, training = recipe.model, recipe.training
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", FutureWarning)  # names that transformers is about to change
        torch.manual_seed(training.seed)
        model: Any = shrunken_model(
            config, attention=settings.attn_implementation, trust_remote_code=settings.trust_remote_code
        )
        if settings.lora_r:
            model = with_lora(model, settings)
        patch = patch_model(model, training.matrix_loss, tokenizer=tokenizer, rows=[rows])
        if training.gradient_checkpointing:
            _checkpoint(model)
            if settings.lora_r:
                model.enable_input_require_grads()
        model.train()
        batch = CompletionCollator(tokenizer)([_cut(rows[i]) for i in range(min(_ROWS, len(rows)))])
        output = model(**{"use_cache": False, **batch})
        output.loss.backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert patch.last is not None
    count = max(patch.last.num_tokens, 1)
    matrix = patch.last.matrix_sum
    return TrialStep(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=len(trained),
        loss=float(output.loss.detach()),
        cross_entropy=float(patch.last.cross_entropy_sum) / count,
        matrix_cross_entropy=None if matrix is None else float(matrix) / count,
        without_gradient=[name for name, p in trained if p.grad is None],
        not_finite=[name for name, p in trained if p.grad is not None and not p.grad.isfinite().all()],
    )


def _checkpoint(model: Any) -> None:
    """Recompute activations, under the name that this version of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _cut(row: dict[str, Any]) -> dict[str, Any]:
    """A part of a long row, around the place where its trained tokens begin."""
    names = [name for name in ("input_ids", "labels", "position_ids") if name in row]
    length = len(row["labels"])
    first = next((n for n, label in enumerate(row["labels"]) if label != IGNORE_INDEX), 0)
    start = max(0, min(first - _LENGTH // 2, length - _LENGTH))
    return {name: row[name][start : start + _LENGTH] for name in names}
