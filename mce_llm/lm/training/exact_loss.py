"""The loss of a model under FSDP2 with mixed precision, whose root rounds what the model returns to the dtype of its products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mce_llm.lm.patch import MatrixLossPatch
from mce_llm.lm.patched_call import with_value


@contextmanager
def exact_loss(model: nn.Module, patch: MatrixLossPatch) -> Iterator[None]:
    """Have a wrapped model return the loss that its patch has computed, for the length of a block; gradients are the engine's.

    Args:
        model: The model as the engine has wrapped it.
        patch: On the model inside it.
    """

    def restore(_: nn.Module, __: Any, output: Any) -> Any:
        if patch.last is None or patch.last.loss is None:
            return output
        if isinstance(output, dict):
            output["loss"] = with_value(output["loss"], patch.last.loss)
            return output
        return (with_value(output[0], patch.last.loss), *output[1:])

    handle = model.register_forward_hook(
        restore
    )  # the one that is set last sees what the engine's own have made
    try:
        yield
    finally:
        handle.remove()
