"""What the fused loss refuses to be given; each problem is told with the value, the limit and the remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from mce_llm.errors import LossInputError
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.running.messages import raise_all


def checked_positions(
    labels_T: Tensor, num_rows: int, token_mask: Tensor | None, ignore_index: int
) -> Tensor | None:
    """Find the positions whose label is not ignored, and check those labels; the host waits for the device once.

    Args:
        labels_T: (T,) int64 targets or `ignore_index`.
        num_rows: V, the rows of the head's weight.
        token_mask: (V,) bool, False for rows of the head that are left out of the token geometry; None for none.
        ignore_index: Label that is skipped.

    Returns:
        (N,) indices, ascending; None where no label is ignored.

    Raises:
        LossInputError: A label is no row of the head, or one that is left out of the token geometry.
    """
    if not labels_T.numel():
        return None
    ignored_T = labels_T == ignore_index
    inside_T = labels_T.clamp(0, num_rows - 1)  # an index out of range would end a CUDA process
    # What is ignored takes the place of a label that is in order, whatever number it is.
    facts = [ignored_T.sum(), *torch.where(ignored_T, inside_T, labels_T).aminmax()]
    if token_mask is not None and len(token_mask) == num_rows:
        facts.append(torch.where(token_mask[inside_T] | ignored_T, -1, inside_T).amax())
    ignored, lowest, highest, *left_out = torch.stack(facts).tolist()
    if not 0 <= lowest <= highest < num_rows:
        raise LossInputError(
            f"labels must be in [0, {num_rows}) or {ignore_index}, got values from "
            f"{lowest} to {highest}; they index the rows of the head's weight"
        )
    if left_out and left_out[0] >= 0:
        raise LossInputError(
            f"token {left_out[0]} is a label, but the token mask leaves it out of the token geometry, where its matrix "
            "loss would be the same whatever is predicted. If it is the padding token and also learnt, pad with another one "
            "(a tokenizer without a padding token is padded with its end of text, which hides no token; in Python: "
            "tokenizer.pad_token = tokenizer.eos_token, or set its entry of token_mask to True); if it is no token of the "
            f"tokenizer, mask the label with {ignore_index} or make the labels with the model's own tokenizer"
        )
    if not ignored:
        return None
    # Their number is known: a stable sort needs no second wait, as `nonzero` would.
    return ignored_T.argsort(stable=True)[: labels_T.numel() - ignored]


def check_label_shape(labels: Tensor, hidden: Tensor) -> None:
    """Raise if a model's labels are not one a token, before they are shifted.

    Args:
        labels: As the model was given them.
        hidden: (B, T, d) hidden states of its layers.

    Raises:
        LossInputError: They are (B, T) of another size.
    """
    if labels.shape != hidden.shape[:-1]:
        raise LossInputError(
            f"labels have shape {tuple(labels.shape)} for a sequence of shape {tuple(hidden.shape[:-1])}; there must be one "
            "label a token (-100 where none is trained)"
        )


def check_inputs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    embeddings: Tensor | None,
    config: MatrixLossConfig,
    softcap: float | None,
    chunk_size: int | None,
) -> None:
    """Raise one LossInputError that lists every way in which the inputs do not fit."""
    problems = []
    if weight.ndim != 2 or weight.numel() == 0:
        problems.append(
            f"weight must be a (vocabulary, width) matrix, got shape {tuple(weight.shape)}; "
            "an empty one usually is a sharded parameter read outside the engine's forward"
        )
    elif hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1]:
        problems.append(
            f"hidden has shape {tuple(hidden.shape)}, its last dimension must be {weight.shape[1]}"
        )
    if not hidden.is_floating_point():
        problems.append(f"hidden must be floating point, got {hidden.dtype}")
    if not weight.is_floating_point():
        problems.append(
            f"weight must be floating point, got {weight.dtype}; quantised heads are not supported"
        )
    if labels.dtype != torch.int64:
        problems.append(f"labels must be int64, got {labels.dtype}")
    if labels.shape != hidden.shape[:-1]:
        problems.append(
            f"labels have shape {tuple(labels.shape)}, hidden asks for {tuple(hidden.shape[:-1])}; "
            "they must already be shifted"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        problems.append(f"bias must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if embeddings is None and config.embeddings == "input":
        problems.append("config.embeddings is 'input': pass the input table as embeddings=")
    if embeddings is not None and embeddings.shape[:1] != weight.shape[:1]:
        problems.append(
            f"embeddings must have one row per vocabulary entry ({weight.shape[0]}), got {tuple(embeddings.shape)}"
        )
    tensors = {"weight": weight, "labels": labels, "bias": bias, "embeddings": embeddings}
    if elsewhere := [
        f"{n} on {t.device}" for n, t in tensors.items() if t is not None and t.device != hidden.device
    ]:
        problems.append(f"hidden is on {hidden.device}, but {', '.join(elsewhere)}; move them to one device")
    if softcap is not None and not softcap > 0:
        problems.append(f"softcap must be positive, got {softcap}")
    if chunk_size is not None and chunk_size < 1:
        problems.append(f"chunk_size must be at least 1, got {chunk_size}")
    raise_all(problems, LossInputError)
