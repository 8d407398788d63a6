"""How exact the fused losses are: relative deviations from dense float64 matrices, over kinds, dtypes and hard cases.

    python benchmarks/loss_accuracy.py --json accuracy.json
    TRITON_INTERPRET=1 python benchmarks/loss_accuracy.py --kernel triton --dtype float32   # without a GPU

The reference forms every density matrix, its eigendecomposition and the gradients by autograd, from the very numbers
that the fused loss is given. Each cell shows the loss / the gradient to the hidden states / that to the weight: the
difference over the larger of 1 and the reference's loss, and Frobenius norms over those of the reference. A gradient
that is zero but for rounding (--) has no relative error; it is checked to be as small. bfloat16 results are
stored in bfloat16, whose rounding alone is 2e-3, and logits of thousands are off by whole units in it, with any loss
(weight 0 is plain cross-entropy). The Lanczos order is high enough to leave no truncation to see.

With `--kernel triton` there are two columns: one token loss in torch's own operations, and in the kernels, which in
Triton's interpreter take a minute. Without Triton and a GPU, or the interpreter, it is refused.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measuring import DTYPES, device_argument, machine, progress, table
from torch import Tensor

from mce_llm.lm import MatrixLossConfig, linear_matrix_cross_entropy, reference_loss
from mce_llm.lm.kernels.launching import VARIABLE

CONFIGS = {
    "token, full": MatrixLossConfig(support=None, order=48),
    "token, support 8": MatrixLossConfig(support=8, order=48),
    "marginal": MatrixLossConfig(kind="marginal"),
    "expected": MatrixLossConfig(kind="expected"),
    "weight 0": MatrixLossConfig(weight=0.0),
    "label smoothing": MatrixLossConfig(loss="label_smoothing"),
    "EMO": MatrixLossConfig(loss="emo"),
}
# Orders up to 16 have kernels, and 8 kept tokens with their target span no more than 9 dimensions.
KERNEL_CONFIG = MatrixLossConfig(support=8, order=12)
Problem = tuple[Tensor, Tensor, Tensor]


def problem(tokens: int = 29, vocabulary: int = 101, width: int = 16, scale: float = 1.0) -> Problem:
    """Random hidden states and head in float64, and labels, a third of them ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64) + 0.5
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    labels[1::3] = -100
    return hidden, weight, labels


def _duplicates() -> Problem:
    hidden, weight, labels = problem()
    weight[1::2] = weight[:-1:2]
    return hidden, weight, labels


def _zero_row() -> Problem:
    hidden, weight, labels = problem()
    weight[3] = (weight.sum(dim=0) - weight[3]) / (
        len(weight) - 1
    )  # the mean row, which centring turns to zero
    labels[0] = 3
    return hidden, weight, labels


def _one_hot() -> Problem:
    hidden, weight, labels = problem()
    hidden = 200 * weight[labels.clamp_min(0)]  # the target's row wins by far
    return hidden, weight, labels


CASES: dict[str, Callable[[], Problem]] = {
    "ordinary": problem,
    "one position": lambda: problem(tokens=1),
    "d > V": lambda: problem(vocabulary=12, width=40),
    "d = 1": lambda: problem(width=1),
    "duplicate rows": _duplicates,
    "row without direction": _zero_row,
    "logits to ±1e4": lambda: problem(scale=700.0),
    "one-hot predictions": _one_hot,
    "uniform predictions": lambda: problem(scale=0.0),
}


def fused(
    given: Problem, config: MatrixLossConfig, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Loss and gradients in `dtype`."""
    hidden, weight = (x.to(device, dtype, copy=True).requires_grad_() for x in given[:2])
    loss = linear_matrix_cross_entropy(hidden, weight, given[2].to(device), config, chunk_size=8).loss
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def by(choice: str) -> Callable[..., tuple[Tensor, ...]]:
    """`fused` with `MCE_LLM_KERNELS` set to a choice."""

    def loss(*given: Any) -> tuple[Tensor, ...]:
        with patch.dict(os.environ, {VARIABLE: choice}):
            return fused(*given)

    return loss


def dense(given: Problem, config: MatrixLossConfig, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The same from float64 matrices, for inputs rounded to `dtype`."""
    hidden, weight = (x.to(dtype, copy=True).double().requires_grad_() for x in given[:2])
    logits = F.linear(hidden, weight)
    loss = reference_loss(logits, given[2], weight, config)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def deviations(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], given: Problem) -> list[float | None]:
    """Of the loss, the gradient to the hidden states and that to the weight; None where that gradient vanishes."""
    loss = abs(float(found[0]) - float(exact[0])) / max(1.0, abs(float(exact[0])))
    errors: list[float | None] = [loss]
    for a, b, other in zip(found[1:], exact[1:], reversed(given[:2]), strict=True):
        difference = float((a.cpu().double() - b).norm())
        # A gradient is a mixture of rows of the other factor; far below their size it is rounding.
        if float(b.norm()) <= 1e-12 * max(1e-300, float(other.norm())):
            if difference > 1e-3:
                raise ArithmeticError(f"a gradient that should vanish has norm {difference:.1e}")
            errors.append(None)
        else:
            errors.append(difference / float(b.norm()))
    return errors


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = ["float64", "float32", "bfloat16"]
    parser.add_argument(
        "--dtype", choices=DTYPES, nargs="+", default=usual, help=f"default {' '.join(usual)}"
    )
    parser.add_argument("--device", type=device_argument, default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--kernel", choices=["torch", "triton"], default="torch", help="whose losses; default torch"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    about = machine(options.device)
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    columns: dict[str, tuple[MatrixLossConfig, Callable[..., tuple[Tensor, ...]]]] = {
        name: (config, fused) for name, config in CONFIGS.items()
    }
    if options.kernel == "triton":
        columns = {choice: (KERNEL_CONFIG, by(choice)) for choice in ("torch", "triton")}
    rows: list[dict[str, Any]] = []
    for dtype in options.dtype:
        cells = []
        for case, make in CASES.items():
            line = [case]
            for name, (config, loss) in columns.items():
                progress(f"{dtype}: {case}, {name}")
                given = make()
                errors = deviations(
                    loss(given, config, DTYPES[dtype], options.device),
                    dense(given, config, DTYPES[dtype]),
                    given,
                )
                rows.append({"dtype": dtype, "case": case, "kind": name, "errors": errors})
                line.append(" / ".join("--" if e is None else f"{e:.0e}" for e in errors))
            cells.append(line)
        progress("")
        print(f"\n{dtype}\n{table(['case', *columns], cells)}")
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
