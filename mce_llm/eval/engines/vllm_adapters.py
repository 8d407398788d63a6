"""Which LoRA adapters vLLM runs as peft does; the others are refused by name.

vLLM reads a few fields of adapter_config.json and passes over the rest, and over whole embeddings in an adapter's weights: the
answers would be those of another model. So what is not known to be the same is refused. Nothing here needs vLLM.
"""

from __future__ import annotations

from typing import Any

from mce_llm.eval.errors import EvaluationError
from mce_llm.running.messages import cause

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM has kernels for; a smaller rank takes the next of them."""

# Fields of peft's LoraConfig that vLLM honours, or that say nothing about the product that is added to a layer.
_HONOURED = {
    "auto_mapping": ...,
    "base_model_name_or_path": ...,
    "bias": (None, "none"),
    "ensure_weight_tying": ...,  # between modules_to_save, of which there are none
    "eva_config": ...,  # how the first values are drawn, like init_lora_weights
    "exclude_modules": ...,
    "fan_in_fan_out": ...,  # how the base layer is laid out, not the adapter
    "inference_mode": ...,
    "init_lora_weights": (
        True,
        False,
        None,
        "gaussian",
        "eva",
        "orthogonal",
    ),  # others change the base model too
    "layers_pattern": ...,
    "layers_to_transform": ...,  # other layers have no weights in the file
    "lora_alpha": ...,
    "lora_dropout": ...,
    "megatron_core": ...,  # has no effect without megatron_config
    "peft_type": ("LORA",),
    "peft_version": ...,
    "qalora_group_size": ...,  # has no effect without use_qalora
    "r": ...,
    "revision": ...,
    "runtime_config": ...,
    "target_modules": ...,
    "task_type": ...,
    "use_rslora": ...,
}
# Beside lora_A and lora_B of a linear layer nothing is added to the model.
_WEIGHTS = (".lora_A.weight", ".lora_B.weight")


def adapter_options(name: str, adapter: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's options for an adapter.

    Args:
        name: The adapter's directory.
        adapter: Its configuration.

    Returns:
        Options of `vllm.EngineArgs`.

    Raises:
        EvaluationError: If vLLM would leave out a part of it; the message names the parts.
    """
    odd = [f"{key} is {value!r}" for key, value in sorted(adapter.items()) if not _honoured(key, value)]
    rank = adapter.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= RANKS[-1]:
        odd.append(f"r is {rank!r}, not in 1 to {RANKS[-1]}")
    if not odd and (other := [key for key in _weight_names(name) if not key.endswith(_WEIGHTS)]):
        odd.append(f"it holds weights beside lora_A and lora_B of linear layers, {other[0]} for one")
    if odd:
        raise EvaluationError(
            f"vllm cannot run the adapter {name} as it was trained ({'; '.join(odd)}); merge it first (mce-llm merge), or use "
            "--backend hf"
        )
    return {"enable_lora": True, "max_lora_rank": next(most for most in RANKS if most >= int(rank or 0))}


def _honoured(key: str, value: Any) -> bool:
    """Whether vLLM does with a field what peft does; a field that is not known here may only be unset."""
    if key not in _HONOURED:
        return not value
    usual: Any = _HONOURED[key]
    return usual is ... or value in usual


def _weight_names(name: str) -> list[str]:
    from peft import load_peft_weights  # heavy, and needed for adapters alone

    try:
        return sorted(load_peft_weights(name, device="cpu"))
    except Exception as error:  # missing and damaged files have no common type
        raise EvaluationError(f"the weights of the adapter {name} cannot be read: {cause(error)}") from error
