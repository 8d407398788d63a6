"""How the frozen weights under adapters are quantised while a recipe's model is loaded (QLoRA and 8-bit LoRA).

bitsandbytes does the arithmetic; it is imported where quantisation is asked for and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import PartialState
from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from mce_llm.finetuning.settings import ModelArguments, ModelSourceError
from mce_llm.running.installation import install_hint, named_file
from mce_llm.running.messages import cause


def quantized_loading(settings: ModelArguments, keep: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise what the settings ask for; none without quantisation.

    4 bits are the "normal float" type with double quantisation, 4.127 bits a weight, as in QLoRA (Dettmers et al. 2023,
    arXiv 2305.14314, §3). Each process holds the whole model, on its own device.

    Args:
        settings: Those of the model.
        keep: Names of layers that stay in `settings.dtype`; None leaves the choice to transformers, which keeps
            embeddings and output head.

    Raises:
        ModelSourceError: bitsandbytes is missing or too old, or the launcher's engine would shard the weights.
    """
    if settings.quantization is None:
        return {}
    name = f"quantization: {settings.quantization}"
    if find_spec("bitsandbytes") is None:
        raise ModelSourceError(f"{name} needs bitsandbytes: {install_hint('qlora')}")
    if is_deepspeed_zero3_enabled() or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ModelSourceError(
            f"{name} with ZeRO-3 or FSDP: quantised weights are not sharded; launch with "
            f"{named_file('recipes/accelerate/ddp.yaml')}, where every GPU holds the quantised model, or leave quantization out"
        )
    dtype = getattr(torch, settings.dtype)
    try:
        config = BitsAndBytesConfig(
            load_in_4bit=settings.quantization == "4bit",
            load_in_8bit=settings.quantization == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=None if keep is None else list(keep),
        )
    except (ImportError, ValueError) as error:  # a bitsandbytes that this transformers cannot use
        raise ModelSourceError(f"{name}: {cause(error)}") from error
    return {"quantization_config": config, "device_map": {"": PartialState().device}}
