"""Model FLOPs of a training step, and peak FLOP/s of devices.

Model FLOPs as in the PaLM paper (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): the operations that forward
and backward need, without recomputation and without the matrix loss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

# Peak dense bfloat16 FLOP/s with float32 accumulation, without sparsity, from the makers' data sheets: NVIDIA H200, H100,
# A100, B200 (DGX B200: 36 PFLOPS for eight with sparsity), GH200, H20, L40S, L40, L4, A40, A10; "NVIDIA Ada GPU architecture" (RTX 4090)
# and "NVIDIA Ampere GA102 GPU architecture" (RTX 3090, RTX A6000) white papers; AMD Instinct MI300X, MI250X.
# In the order in which the patterns are tried on `torch.cuda.get_device_name()`.
PEAK_BF16_FLOPS: dict[str, float] = {
    r"B200\b": 2250e12,
    r"GH200\b": 989.4e12,
    r"H200\b": 989.4e12,
    r"H100.*\bPCIe\b": 756e12,
    r"H100.*\bNVL\b": 835.5e12,
    r"H100\b": 989.4e12,
    r"H800\b": 989.4e12,
    r"H20\b": 148e12,
    r"A100\b": 311.9e12,
    r"A800\b": 311.9e12,
    r"L40S\b": 362e12,
    r"L40\b": 181e12,
    r"L4\b": 121e12,
    r"A40\b": 149.7e12,
    r"A10\b": 125e12,
    r"RTX A6000\b": 154.8e12,
    r"RTX 4090$": 165.2e12,
    r"RTX 3090$": 71e12,
    r"MI300X\b": 1307.4e12,
    r"MI250X\b": 383e12,
}


def peak_flops(device_name: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device, or None where it is not in the table (or is a slice of a device)."""
    if "MIG" in device_name:
        return None
    for pattern, flops in PEAK_BF16_FLOPS.items():
        if re.search(rf"\b{pattern}", device_name):
            return flops
    return None


@dataclass(frozen=True)
class ModelFlops:
    """Model FLOPs of one token, forward and backward: `fixed` + `per_position` · T in rows of T positions.

    Attributes:
        fixed: 4 N + 2 N_trained, which is 6 N where everything is trained. N counts the parameters in matrix products:
            not the input embeddings (unless tied to the head), and of experts the active ones alone.
        per_position: 12 · layers · heads · head width, for attention; by convention the causal mask is not considered.
    """

    fixed: float
    per_position: float

    @classmethod
    def of(cls, model: nn.Module) -> ModelFlops | None:
        """Count those of a Hugging Face causal model or a `peft` model around one; None without the usual config.

        Count before an engine flattens the parameters (DeepSpeed ZeRO-3 and FSDP2 keep their sizes).
        """
        config: Any = getattr(model, "config", None)
        if config is None:
            return None
        if hasattr(config, "get_text_config"):
            config = config.get_text_config(decoder=True)
        layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
        width = getattr(config, "hidden_size", None)
        if not layers or not heads or not width:
            return None
        head_width = getattr(config, "head_dim", None) or width // heads
        active = _active_share(config)
        lookup = _lookup_only(model)
        total = trained = 0.0
        for name, parameter in model.named_parameters():
            if id(parameter) in lookup:
                continue
            count = _size(parameter) * (active if ".experts." in name else 1.0)
            total += count
            trained += count if parameter.requires_grad else 0.0
        return cls(4 * total + 2 * trained, 12.0 * layers * heads * head_width)

    def of_tokens(self, tokens: float, positions: float) -> float:
        """FLOPs of a number of tokens.

        Args:
            tokens: How many.
            positions: Σ over them of the length of their row.
        """
        return self.fixed * tokens + self.per_position * positions


def _active_share(config: Any) -> float:
    """Of the experts' parameters, the share that one token uses."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / experts if experts and used else 1.0


def _lookup_only(model: nn.Module) -> set[int]:
    """Ids of the parameters that are looked up and multiply nothing."""
    of: Any = model
    table = getattr(of.get_input_embeddings(), "weight", None)
    head = getattr(of.get_output_embeddings(), "weight", None)
    return set() if table is None or table is head else {id(table)}


def _size(parameter: Any) -> int:
    """Elements of a whole parameter: ZeRO-3 leaves an empty tensor behind, bitsandbytes packs two in a byte."""
    if hasattr(parameter, "ds_numel"):
        return int(parameter.ds_numel)
    if type(parameter).__name__ == "Params4bit":
        return int(parameter.numel() * 2 * parameter.element_size())
    return int(parameter.numel())
