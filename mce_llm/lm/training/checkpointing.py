"""How layers are recomputed in the backward pass where their weights are in 8 bits.

bitsandbytes' LLM.int8() product keeps its input as a plain attribute of the autograd node. The hooks by which non-reentrant
checkpointing drops what a layer saves never see it, so that every such input stays until the backward pass: 3 d + inner
width elements a token and layer. Reentrant checkpointing makes no node in the forward pass, and drops it all; its
gradients are the same.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainingArguments

_EIGHT_BIT_LAYER = "Linear8bitLt"  # of bitsandbytes, which is imported where it is used and nowhere else


def checkpointing_kwargs(args: TrainingArguments) -> dict[str, Any]:
    """What `activation_checkpointing_kwargs` was given, under the name that this version of transformers has for it."""
    given = getattr(args, "activation_checkpointing_kwargs", None) or getattr(
        args, "gradient_checkpointing_kwargs", None
    )
    return dict(given or {})


def is_reentrant(args: TrainingArguments, *, eight_bit: bool) -> bool:
    """Whether checkpointing is reentrant: as it was set, and by default where weights are in 8 bits."""
    return bool(checkpointing_kwargs(args).get("use_reentrant", eight_bit))


def checkpoint_eight_bit(args: TrainingArguments, model: nn.Module) -> str | None:
    """Make the checkpointing of a model with 8-bit weights reentrant, unless it was set.

    Args:
        args: The training arguments, changed in place.
        model: The model.

    Returns:
        What to tell the user, or None where there is nothing to tell.
    """
    if not args.gradient_checkpointing or not any(
        type(module).__name__ == _EIGHT_BIT_LAYER for module in model.modules()
    ):
        return None
    given = checkpointing_kwargs(args)
    if "use_reentrant" not in given:
        given["use_reentrant"] = True
        # The old name mirrors the new one, where there is a new one.
        for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
            if hasattr(args, name):
                setattr(args, name, dict(given))
        return "8-bit weights: gradient checkpointing is reentrant, as their layers would keep their inputs otherwise"
    if given["use_reentrant"]:
        return None
    return (
        "8-bit weights with use_reentrant: false: every layer keeps the inputs of its 8-bit products, as if most of it were "
        "not checkpointed; leave use_reentrant out of gradient_checkpointing_kwargs to save that memory"
    )
