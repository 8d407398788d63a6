"""Packed rows laid end to end: the one form in which FlashAttention keeps packed examples apart.

Other implementations get a mask that is made from `position_ids`, row by row. FlashAttention gets none; transformers
tells it where examples begin, and does so for a batch of a single row only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mce_llm.lm.checks.model_check import is_flash


def in_one_row(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """A packed batch of several rows as one row, (1, B·T), if the model's attention needs that; else as it is.

    Nothing else changes for the loss: positions restart where a row begins, and its first label, which nothing predicts, is
    -100.

    Args:
        model: The Hugging Face model, for its attention implementation.
        inputs: Arguments of its forward; packed are those with `position_ids` and without `attention_mask`.
    """
    positions = inputs.get("position_ids")
    if (
        not isinstance(positions, Tensor)
        or positions.ndim != 2
        or len(positions) == 1
        or inputs.get("attention_mask") is not None
        or not is_flash(getattr(model.config, "_attn_implementation", None))
    ):
        return inputs
    rows = positions.shape
    if isinstance(labels := inputs.get("labels"), Tensor):
        labels = labels.clone()
        labels[:, 0] = -100  # the row before would predict it
        inputs = {**inputs, "labels": labels}
    return {
        name: value.reshape(1, -1) if isinstance(value, Tensor) and value.shape == rows else value
        for name, value in inputs.items()
    }


def in_rows(result: Any, rows: int) -> Any:
    """The (loss, outputs) of such a batch with the logits in their rows again, (B, T, V)."""
    if isinstance(result, tuple):
        outputs = result[1]
        logits = outputs.get("logits") if isinstance(outputs, dict) else None
        if logits is not None and len(logits) == 1 < rows:
            outputs["logits"] = logits.reshape(rows, -1, logits.shape[-1])
    return result
