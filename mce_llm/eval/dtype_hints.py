"""What to say of the precision of an evaluation: that another is faster here, or that the launch asks for one."""

from __future__ import annotations

import torch

from mce_llm.eval.asking import QuestionsConfig
from mce_llm.running.cpu_speed import CLEARLY_SLOWER, bfloat16_speed
from mce_llm.running.launched_precision import unused_precision_text


def precision_hints(config: QuestionsConfig, dtype: str, device: torch.device) -> list[str]:
    """What to say of the precision of an evaluation, one text each.

    Args:
        config: The options.
        dtype: The precision that the weights have now.
        device: Where they are.
    """
    launched = unused_precision_text(f"an evaluation has --dtype, here {config.dtype}")
    return [text for text in (launched, faster_dtype(config, dtype, device)) if text]


def faster_dtype(config: QuestionsConfig, dtype: str, device: torch.device) -> str | None:
    """What to say of the precision of an evaluation whose options leave it to the model.

    Args:
        config: The options.
        dtype: The precision that the weights have now.
        device: Where they are.

    Returns:
        The faster precision and by how much, or None where it is in use, was chosen, or is unknown.
    """
    if config.dtype != "auto" or dtype not in ("float32", "bfloat16"):
        return None
    now = f"the model runs in {dtype}, as it was saved (--dtype auto)"
    caution = "the answers may differ, and only runs of the same dtype are compared"
    if device.type == "cpu":
        speed = bfloat16_speed()
        if dtype == "float32" and speed > 1 / CLEARLY_SLOWER:
            return f"{now}; --dtype bfloat16 is faster on this CPU ({speed:.1f} times in one product, measured): {caution}"
        if dtype == "bfloat16" and speed < CLEARLY_SLOWER:
            return f"{now}; --dtype float32 is faster on this CPU ({1 / speed:.1f} times in one product, measured): {caution}"
        return None
    if (
        dtype == "float32"
        and device.type == "cuda"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return f"{now}; --dtype bfloat16 takes half the memory and is several times as fast on this GPU: {caution}"
    return None
