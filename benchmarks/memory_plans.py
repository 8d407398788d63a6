"""Which engine holds which model: the tables of recipes/README.md, from the arithmetic of `mce-llm plan`.

    python benchmarks/memory_plans.py                    # both tables, in Markdown
    python benchmarks/memory_plans.py --length 4096

Arithmetic, not measurements: no weights are loaded. The shapes of the models are those of their published
configurations.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers import LlamaConfig, Qwen2Config

from mce_llm.commands.recipe_shapes import read_recipe
from mce_llm.commands.training_plan import plan_training
from mce_llm.planning import ENGINES, MemoryPlan

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def llama(
    width: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int
) -> LlamaConfig | Qwen2Config:
    """An untied Llama of this shape."""
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        max_position_embeddings=16384,
        tie_word_embeddings=False,
    )


MODELS = {
    "Qwen2.5-0.5B": Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "Qwen2.5-1.5B": Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "Llemma-7B": llama(4096, 11008, 32, 32, 32, 32016),
    "Llama-3.1-8B": llama(4096, 14336, 32, 32, 8, 128256),
    "Llama-2-13B": llama(5120, 13824, 40, 40, 40, 32000),
    "Llemma-34B": llama(8192, 22016, 48, 64, 8, 32000),
    "Llama-3.1-70B": llama(8192, 28672, 80, 64, 8, 128256),
}
FULL = ((1, 79), (4, 79), (8, 45), (8, 79), (16, 79), (64, 79))
ADAPTERS = ((1, 22.5), (1, 45), (1, 79), (8, 22.5), (8, 79))


def plan(recipe: str, model: Path, gpus: int, memory: float, length: int) -> MemoryPlan:
    """The plan of a recipe with another model, one row of `length` tokens a micro-batch."""
    words = ["--model_name_or_path", str(model), "--max_length", str(length)]
    words += ["--per_device_train_batch_size", "1"]
    return plan_training(read_recipe(str(RECIPES / recipe), words), num_gpus=gpus, memory_gib=memory)


def cell(found: MemoryPlan) -> str:
    """The engine that fits, how many rows, and what the host needs under offload."""
    if found.recommended is None:
        return "–"
    best = found.of(found.recommended)
    if ENGINES[best.engine].offloads:
        return f"offload · {best.largest_micro_batch} · {best.host / 2**30:,.0f} GiB"
    return f"{best.engine} · {best.largest_micro_batch}"


def table(heading: str, setups: tuple[tuple[int, float], ...], rows: dict[str, list[MemoryPlan]]) -> str:
    """Markdown: a row a model, a column a machine."""
    head = [heading, *(f"{gpus} × {memory:g} GiB" for gpus, memory in setups)]
    lines = [head, ["---"] * len(head)]
    lines += [[name, *map(cell, plans)] for name, plans in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in options.models}
        for name, path in paths.items():
            MODELS[name].architectures = [type(MODELS[name]).__name__.replace("Config", "ForCausalLM")]
            MODELS[name].save_pretrained(path)

        def plans(recipe: str, name: str, setups: tuple[tuple[int, float], ...]) -> list[MemoryPlan]:
            return [plan(recipe, paths[name], *setup, options.length) for setup in setups]

        full = {name: plans("llemma7b_metamath_mce.yaml", name, FULL) for name in paths}
        print(table("all weights", FULL, full), end="\n\n")
        rows = {
            f"{name}, {kind}": plans(f"llemma7b_metamath_{kind.lower()}.yaml", name, ADAPTERS)
            for name in paths
            for kind in ("LoRA", "QLoRA")
        }
        print(table("adapters", ADAPTERS, rows))


if __name__ == "__main__":
    main()
