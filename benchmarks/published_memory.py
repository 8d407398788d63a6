"""Published measurements of training memory, and what the arithmetic of `mce-llm plan` says to the same runs.

    python benchmarks/published_memory.py           # the table of docs/memory.md, in Markdown

No weights are loaded. The shapes of the models are those of their published configurations. These runs had stock
cross-entropy, so the plan here has it too. What a source leaves open is assumed: flash attention where it names it, else
sdpa; `adamw_torch`; buffers of DeepSpeed as its integration with transformers sets them ("auto"). A figure is taken for
GiB where the source says GiB or nvidia-smi, for 10⁹ bytes where it says GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mce_llm.planning import (
    GIB,
    DeepSpeedSizes,
    LossShape,
    ModelShape,
    TrainingShape,
    plan_memory,
    shape_of,
    with_lora,
)

GB = 10**9 / GIB
QWEN = ("Qwen README", "https://github.com/QwenLM/Qwen#profiling-of-memory-and-speed")
LITGPT = ("LitGPT", "https://github.com/Lightning-AI/litgpt/blob/main/tutorials/resource-tables.md")
PEFT = ("PEFT guide", "https://huggingface.co/docs/peft/accelerate/deepspeed")
GIST = ("gist chenyaofo", "https://gist.github.com/chenyaofo/d4cd6a20ab4b95cb3a49491747e2139a")

# Width, inner width, layers, heads, key-value heads, vocabulary.
SHAPES = {
    "Llama-2-7B": (4096, 11008, 32, 32, 32, 32000),
    "Llama-2-13B": (5120, 13824, 40, 40, 40, 32000),
    "Llama-2-70B": (8192, 28672, 80, 64, 8, 32000),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256),
    "Qwen-1.8B": (2048, 5504, 24, 16, 16, 151936),
    "Qwen-7B": (4096, 11008, 32, 32, 32, 151936),
    "Qwen-14B": (5120, 13696, 40, 40, 40, 152064),
    "Qwen-72B": (8192, 24576, 80, 64, 64, 152064),
}


@dataclass(frozen=True)
class Published:
    """One measurement.

    Attributes:
        source: Who measured it, and where that is written.
        model: Of `SHAPES`.
        engine: The engine.
        devices: GPUs.
        what: The run, for the table.
        measured: GiB on one GPU; None where it ran out of memory.
        before: What the plan said in its first version, GiB.
        lora: Rank of adapters; 0 for training all weights.
        matrices: What has adapters; by default every matrix.
        capacity: GiB of the GPU, where it ran out of memory.
        run: Settings of the run.
    """

    source: tuple[str, str]
    model: str
    engine: str
    devices: int
    what: str
    measured: float | None
    before: float
    lora: int = 0
    matrices: tuple[str, ...] = ()
    capacity: float = 0.0
    run: dict[str, Any] = field(default_factory=dict)


@cache
def model_of(name: str, lora: int, matrices: tuple[str, ...] = ()) -> ModelShape:
    """The model on the meta device, measured out."""
    width, inner, layers, heads, key_heads, vocabulary = SHAPES[name]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        shape = shape_of(LlamaForCausalLM(config), name)
    if not lora:
        return shape
    shape = with_lora(shape, lora)
    if matrices:
        kept = [replace(n, adapted=n.name.endswith(matrices)) for n in shape.layer.linears]
        shape = replace(shape, layer=replace(shape.layer, linears=tuple(kept)))
    return shape


def training_of(item: Published) -> TrainingShape:
    """The run as the plan sees it."""
    width = SHAPES[item.model][0]
    deepspeed = DeepSpeedSizes(width**2, int(0.9 * width**2))  # "auto" in transformers
    settings = {
        "micro_batch": 1,
        "dtype": "bfloat16",
        "mixed": "bfloat16",
        "optim": "adamw_torch",
        "checkpointing": True,
        "attention": "flash",
        "loss": LossShape("token", 0.0, None, 8, 2048, stock=True),
        "padded": False,
        "adapter_rank": item.lora,
        "deepspeed": deepspeed,
    }
    return TrainingShape(**{**settings, **item.run})


def planned(item: Published) -> float:
    """GiB of the plan."""
    model, training = model_of(item.model, item.lora, item.matrices), training_of(item)
    plan = plan_memory(model, training, devices=item.devices, capacity=None, engine=item.engine)
    return plan.engines[0].peak / GIB


def _qwen(model: str, figures: dict[int, tuple[float, float]], **more: Any) -> list[Published]:
    """Rows of Qwen's table: length → (what is printed there, what the plan said before)."""
    settings = {"engine": "ddp", "devices": 1, "lora": 64, **more}
    kind = "LoRA" if settings["lora"] else "all weights"
    return [
        Published(
            QWEN,
            model,
            what=f"{kind}, 1 × {length:,}",
            measured=printed / settings["devices"],
            before=before,
            run={"length": length},
            **settings,
        )
        for length, (printed, before) in figures.items()
    ]


def _litgpt(
    model: str, quantization: str | None, rows: int, measured: float | None, before: float
) -> Published:
    """A row of LitGPT's table: bf16-true, no checkpointing, r 8 on queries and values of the longest 1,304 tokens."""
    bits = " on 4 bits" if quantization else ""
    run = {"length": 1304, "micro_batch": rows, "quantization": quantization, "checkpointing": False}
    size = None if measured is None else measured * GB
    what = f"LoRA{bits}, {rows} × 1,304, nothing recomputed"
    return Published(LITGPT, model, "ddp", 1, what, size, before, 8, ("q_proj", "v_proj"), 39.4, run)


PUBLISHED = [
    *_qwen("Qwen-1.8B", {256: (6.7, 6.0), 2048: (11.0, 9.3), 8192: (21.8, 20.9)}),
    *_qwen("Qwen-7B", {256: (20.1, 19.1), 2048: (23.8, 22.6), 8192: (36.6, 35.2)}),
    *_qwen("Qwen-14B", {256: (34.6, 33.3), 2048: (37.4, 36.8), 8192: (55.2, 50.4)}),
    *_qwen(
        "Qwen-7B",
        {256: (139.2, 71.0), 512: (148.0, 71.0), 1024: (162.0, 71.0)},
        engine="zero3",
        devices=2,
        lora=0,
    ),
    *_qwen(
        "Qwen-72B",
        {
            256: (215.4, 44.0),
            1024: (222.6, 45.6),
            2048: (228.8, 48.8),
            4096: (249.0, 55.1),
            8192: (289.2, 67.8),
        },
        engine="zero3",
        devices=4,
    ),
    _litgpt("Llama-2-7B", None, 1, 21.30, 20.9),
    _litgpt("Llama-2-7B", "4bit", 1, 13.84, 11.6),
    _litgpt("Llama-2-7B", None, 2, 29.07, 27.4),
    _litgpt("Llama-2-7B", None, 4, None, 40.4),
    _litgpt("Llama-2-13B", None, 1, 38.12, 36.6),
    _litgpt("Llama-2-13B", "4bit", 1, 22.55, 18.4),
    _litgpt("Llama-2-13B", None, 2, None, 46.5),
    Published(
        PEFT,
        "Llama-2-70B",
        "zero3",
        8,
        "LoRA, 8 × 2,048",
        64 * GB,
        53.9,
        8,
        run={"length": 2048, "micro_batch": 8, "adapter_dropout": True, "deepspeed": DeepSpeedSizes()},
    ),
    *(
        Published(
            GIST,
            "Llama-2-7B",
            engine,
            8,
            f"all weights, {rows} × 4,096{'' if checkpointing else ', nothing recomputed'}",
            measured,
            before,
            run={"length": 4096, "micro_batch": rows, "checkpointing": checkpointing},
        )
        for engine, rows, checkpointing, measured, before in (
            ("zero2", 1, False, 44.8, 51.3),
            ("zero2", 1, True, 23.5, 32.5),
            ("zero2", 4, True, 38.6, 36.8),
            ("zero3", 2, False, 75.7, 67.2),
            ("zero3", 2, True, 20.4, 23.0),
            ("zero3", 8, True, 39.1, 38.1),
            ("zero3_offload", 4, True, 7.9, 14.2),
        )
    ),
]


def row(item: Published, plan: Callable[[Published], float] = planned) -> list[str]:
    """A line of the table."""
    after = plan(item)
    name, url = item.source
    cells = [f"[{name}]({url})", item.model, f"{item.devices} × {item.engine}", item.what]
    if item.measured is None:
        told = "told" if after > item.capacity else "missed"
        return [*cells, f"out of {item.capacity:g}", f"{item.before:.1f}", f"{after:.1f}", told]
    return [
        *cells,
        f"{item.measured:.1f}",
        f"{item.before:.1f} ({item.before / item.measured:.2f})",
        f"{after:.1f}",
        f"{after / item.measured:.2f}",
    ]


def table() -> str:
    """All of it in Markdown."""
    head = ["source", "model", "GPUs", "run", "measured", "before", "planned", "ratio"]
    lines = [head, ["---"] * len(head), *map(row, PUBLISHED)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary() -> str:
    """The median ratio of each engine."""
    ratios: dict[str, list[float]] = {}
    for item in PUBLISHED:
        if item.measured is not None:
            ratios.setdefault(item.engine, []).append(planned(item) / item.measured)
    parts = (
        f"{engine} {median(found):.2f} ({min(found):.2f} to {max(found):.2f}, {len(found)} figures)"
        for engine, found in ratios.items()
    )
    return f"planned ÷ measured, median: {'; '.join(parts)}"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(table(), end="\n\n")
    print(summary())


if __name__ == "__main__":
    main()
