"""One forward and backward pass of a shrunken model of a recipe's architecture, with the recipe's own loss.

Same class, same head, same vocabulary and adapters; a few layers and a fraction of the width. What would fail in a
run for reasons of architecture (a head that the loss cannot read, a parameter that no gradient reaches) fails here, in
seconds and on any machine.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.data import IGNORE_INDEX, CompletionCollator
from mce_llm.finetuning.adapters import with_lora
from mce_llm.finetuning.configuration import Recipe
from mce_llm.finetuning.models import freeze_beside_text
from mce_llm.finetuning.settings import ModelSourceError
from mce_llm.lm import patch_model
from mce_llm.lm.checks.shrinking import ShrinkingError, small_model

_ROWS = 2
_LENGTH = 256
_MOST_PARAMETERS = 400_000_000


@dataclass(frozen=True)
class TrialStep:
    """What one step of the shrunken model gave.

    Attributes:
        parameters: Parameters of the shrunken model.
        trained: Trained ones, tensors.
        loss: The recipe's loss, nats.
        cross_entropy: CE, nats.
        matrix_cross_entropy: MCE, nats; None where it is no part of the loss.
        terms: What another loss has beside CE, by the names that it is logged under.
        without_gradient: Trained parameters that got no gradient.
        not_finite: Trained parameters whose gradient is not finite.
    """

    parameters: int
    trained: int
    loss: float
    cross_entropy: float
    matrix_cross_entropy: float | None
    terms: dict[str, float]
    without_gradient: list[str]
    not_finite: list[str]


def shrunken_model(model: PreTrainedModel, *, attention: str | None) -> PreTrainedModel:
    """A small model of the same kind, float32, with random weights.

    Args:
        model: The full model; its weights are not read.
        attention: eager keeps it; what this machine may lack (FlashAttention) becomes the default.

    Raises:
        ModelSourceError: No small model could be made.
    """
    try:
        return small_model(
            model,
            vocabulary=None,
            length=_LENGTH,
            attention="eager" if attention == "eager" else None,
            most_parameters=_MOST_PARAMETERS,
        )
    except ShrinkingError as error:
        raise ModelSourceError(str(error)) from error


def try_step(
    recipe: Recipe, full: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> TrialStep:
    """One forward and backward pass.

    Args:
        recipe: Loss, adapters and gradient checkpointing are read.
        full: The full model; its weights are not read.
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
        model: Any = shrunken_model(full, attention=settings.attn_implementation)
        freeze_beside_text(model)
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
        terms={name: float(value) / count for name, value in patch.last.term_sums.items()},
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
