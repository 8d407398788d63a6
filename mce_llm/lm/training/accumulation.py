"""When the gradients of sharded weights are reduced, where an optimizer step has several micro-batches.

Between micro-batches transformers' trainer asks accelerate not to synchronise, and FSDP2 then keeps every gradient whole
on every GPU until the last micro-batch: 2 bytes a parameter under bf16, whatever the number of GPUs. Here they are reduced
after each micro-batch instead, as ZeRO-2 and ZeRO-3 do by themselves. A step then moves half as much again between the
GPUs (weights are gathered twice a micro-batch, and gradients reduced once), and the sum over micro-batches is formed in
the float32 of the shards instead of the dtype of the products.
"""

from __future__ import annotations

from typing import Any

from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments

_SETTING = "sync_each_batch"
SHOWN_SETTING = f"accelerator_config: {{gradient_accumulation_kwargs: {{{_SETTING}: false}}}}"
"""What a recipe says to have gradients whole until the last micro-batch."""


def reduces_each_batch(args: TrainingArguments) -> bool:
    """Whether sharded gradients are reduced after each micro-batch: so it is unless `accelerator_config` says otherwise."""
    chosen = getattr(args.accelerator_config, "gradient_accumulation_kwargs", None) or {}
    return bool(chosen.get(_SETTING, True))


def keep_gradients_sharded(trainer: Any) -> str | None:
    """Have gradients reduced after each micro-batch, where that makes a difference and is not set already.

    Args:
        trainer: The trainer, with the model wrapped by its engine.

    Returns:
        What to tell the user, or None where there is nothing to tell.
    """
    steps = trainer.args.gradient_accumulation_steps
    if steps == 1 or not isinstance(trainer.model_wrapped, FSDPModule):
        return None
    if not reduces_each_batch(trainer.args):
        return f"FSDP2: with {_SETTING}: false every GPU holds all gradients unsharded until the last of {steps} micro-batches"
    trainer.accelerator.gradient_state.plugin_kwargs[_SETTING] = True
    return (
        f"FSDP2: gradients are reduced after each of {steps} micro-batches, so that they stay sharded; fewer and larger "
        f"micro-batches are faster where they fit ({SHOWN_SETTING} reduces once a step, with all gradients on every GPU)"
    )
