"""One training step of a whole model with random weights: stock cross-entropy, Liger's, and ours, in one run.

    python benchmarks/training_step.py --device cuda --shape 7b --batch 4 --length 2048
    python benchmarks/training_step.py --shape 28m --batch 4 --length 256 --dtype float32

Time is that of forward, backward and optimizer step; the peak is that of forward and backward, beside weights and
optimizer states. Each repeat runs every case once on the same model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from measuring import (
    DTYPES,
    compare,
    device_argument,
    machine,
    mebibytes,
    milliseconds,
    out_of_memory_as_none,
    peak_memory,
    positive,
    progress,
    ratio,
    table,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mce_llm.lm import MatrixLossConfig, patch_model

# hidden, feed-forward, layers, heads, key-value heads, vocabulary. 7b: Llama 2; 1b: Llama 3.2 with its vocabulary.
SHAPES = {
    "2m": (128, 344, 4, 4, 4, 4096),
    "28m": (320, 864, 6, 5, 5, 32000),
    "125m": (768, 2048, 12, 12, 12, 32000),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}
STOCK, LIGER = "stock CE", "Liger CE"


def build(shape: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A Llama with random weights, in training mode, with gradient checkpointing."""
    hidden, feed_forward, layers, heads, key_values, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        use_cache=False,
    )
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its newer name
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    return model.train()


class Steps:
    """One training step with each loss, on one model and one batch."""

    def __init__(self, model: PreTrainedModel, batch: int, length: int, optimizer: str) -> None:
        self.model = model
        size, device = model.config.vocab_size, model.device
        generator = torch.Generator().manual_seed(0)
        self.input_ids = torch.randint(size, (batch, length), generator=generator).to(device)
        # A learning rate of zero: every case sees the same weights, and the arithmetic is all there.
        parameters, fused = model.parameters(), device.type == "cuda"
        self.optimizer: torch.optim.Optimizer | None = None
        if optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=fused)
        elif optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, lr=0.0, fused=fused)

    def cases(self, support: int, order: int) -> dict[str, Callable[[], Tensor]]:
        """Name → a function that returns the loss."""
        found = {STOCK: self.stock}
        if self.model.device.type == "cuda" and find_spec("liger_kernel") is not None:
            found[LIGER] = self.liger()
        found["ours, weight 0"] = self.ours(weight=0.0)
        found["ours, label smoothing"] = self.ours(loss="label_smoothing")
        found["ours, EMO"] = self.ours(loss="emo")
        found[f"ours, token, support {support}, order {order}"] = self.ours(support=support, order=order)
        found["ours, marginal"] = self.ours(kind="marginal")
        found["ours, expected"] = self.ours(kind="expected")
        return found

    def stock(self) -> Tensor:
        """The model's own loss."""
        return self.model(input_ids=self.input_ids, labels=self.input_ids).loss

    def liger(self) -> Callable[[], Tensor]:
        """Liger's fused linear cross-entropy behind the same decoder."""
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss()
        model: Any = self.model

        def run() -> Tensor:
            hidden = model.model(input_ids=self.input_ids).last_hidden_state[:, :-1]
            labels = self.input_ids[:, 1:].reshape(-1)
            return loss(model.lm_head.weight, hidden.reshape(-1, hidden.shape[-1]), labels)

        return run

    def ours(self, **settings: Any) -> Callable[[], Tensor]:
        """The model with our patch on."""
        config = MatrixLossConfig(**settings)

        def run() -> Tensor:
            patch = patch_model(self.model, config)
            try:
                return self.model(input_ids=self.input_ids, labels=self.input_ids).loss
            finally:
                patch.remove()

        return run

    def step(self, loss: Callable[[], Tensor]) -> Callable[[], None]:
        """Forward, backward and optimizer step."""

        def run() -> None:
            loss().backward()
            if self.optimizer is not None:
                self.optimizer.step()

        return run

    def reset(self) -> None:
        """Drop the gradients."""
        self.model.zero_grad(set_to_none=True)


def measure(steps: Steps, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each case that fits."""
    losses, fitting = steps.cases(options.support, options.order), {}
    for name, loss in losses.items():
        progress(f"warming up: {name}")
        with out_of_memory_as_none():
            steps.step(loss)()
            fitting[name] = loss
        steps.reset()
    device = steps.model.device
    seen = compare(
        {name: steps.step(loss) for name, loss in fitting.items()}, device, options.repeats, steps.reset
    )
    rows: list[dict[str, Any]] = []
    for name, loss in fitting.items():
        steps.reset()
        peak = peak_memory(lambda loss=loss: loss().backward(), device)  # type: ignore[misc]
        rows.append({"case": name, "seconds": seen[name].median, "peak_bytes": peak})
    steps.reset()
    for row in rows:
        row["tokens_per_second"] = steps.input_ids.numel() / row["seconds"]
        for key, base in (("stock", STOCK), ("liger", LIGER)):
            if base in seen:
                row[f"against_{key}"] = row["seconds"] / seen[base].median
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", choices=SHAPES, default="28m", help="a Llama of about that size (default 28m)"
    )
    parser.add_argument("--batch", type=positive, default=4, help="sequences (default 4)")
    parser.add_argument("--length", type=positive, default=256, help="tokens of each (default 256)")
    parser.add_argument("--support", type=positive, default=64, help="k of the token kind (default 64)")
    parser.add_argument("--order", type=positive, default=8, help="its Lanczos steps (default 8)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default bfloat16)"
    )
    parser.add_argument("--device", type=device_argument, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--optimizer", choices=("adamw", "sgd", "none"), default="adamw")
    parser.add_argument("--repeats", type=positive, default=5, help="timed rounds (default 5)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    if options.length < 2:
        parser.error("--length must be at least 2: the first token has no label")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    about = machine(options.device)
    model = build(options.shape, DTYPES[options.dtype], options.device)
    parameters = model.num_parameters()
    rows = measure(Steps(model, options.batch, options.length, options.optimizer), options)
    print("  ".join(f"{key} {value}" for key, value in about.items()), f" {options.dtype}")
    print(
        f"{options.shape}: {parameters / 1e6:.1f}M parameters, V={model.config.vocab_size}, "
        f"batch {options.batch} × {options.length} tokens, {options.optimizer}, gradient checkpointing\n"
    )
    header = ["loss", "ms a step", "tokens/s", "× stock", "× Liger", "peak MiB", "× stock memory"]
    plain = rows[0]["peak_bytes"] if rows and rows[0]["case"] == STOCK else None
    cells = [
        [
            row["case"],
            milliseconds(row["seconds"]),
            f"{row['tokens_per_second']:.0f}",
            ratio(row.get("against_stock"), 1),
            ratio(row.get("against_liger"), 1),
            mebibytes(row["peak_bytes"]),
            ratio(row["peak_bytes"], plain),
        ]
        for row in rows
    ]
    print(table(header, cells))
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(
            json.dumps(
                {"machine": about, "parameters": parameters, "settings": settings, "rows": rows}, indent=2
            )
        )


if __name__ == "__main__":
    main()
