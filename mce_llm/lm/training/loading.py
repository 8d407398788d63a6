"""What loading a checkpoint's weights into a model found missing, without what was never missing."""

from __future__ import annotations

from typing import Any

from torch import nn


def without_tied(model: nn.Module, result: Any) -> Any:
    """Take the names of tied weights out of what `load_state_dict` reports as missing.

    safetensors keeps one copy of a tensor that has two names, such as that of a head that is tied to the embeddings, and
    the model gets it under either.

    Args:
        model: The model that was loaded into.
        result: With `missing_keys` and `unexpected_keys`.

    Returns:
        The same, where a missing name belongs to a parameter or buffer that was loaded under another one, without it.
    """
    missing = set(result.missing_keys)
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    loaded = {id(tensor) for name, tensor in tensors if name not in missing}
    tied = {name for name, tensor in tensors if name in missing and id(tensor) in loaded}
    if not tied:
        return result
    return type(result)([name for name in result.missing_keys if name not in tied], result.unexpected_keys)
