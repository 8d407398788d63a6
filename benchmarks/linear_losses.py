"""Time and peak memory of the head's loss, forward and backward, side by side in one run.

    python benchmarks/linear_losses.py --tokens 1024 --width 1024 --vocabulary 32000
    python benchmarks/linear_losses.py --device cuda --dtype bfloat16 --tokens 8192 --width 4096
    python benchmarks/linear_losses.py --sweep --plot costs.png

Beside our own kinds stand the head as Hugging Face models call it, torch's linear cross-entropy where this torch has
one, and Liger's fused one where it is installed on a GPU. `floor` is the time of the fewest products with the table
that the method needs, timed in the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import (
    DTYPES,
    Measurement,
    compare,
    device_argument,
    machine,
    mebibytes,
    milliseconds,
    out_of_memory_as_none,
    positive,
    ratio,
    table,
)

from mce_llm.lm import MatrixLossConfig, linear_matrix_cross_entropy

_SWEEP = (0.25, 0.5, 1, 2)  # along each axis, times the size that is given
HUGGING_FACE, WEIGHT_0, PRODUCTS = "Hugging Face", "ours, weight 0", "3 products"


@dataclass(frozen=True)
class Size:
    """One problem: T tokens, width d, vocabulary V, and the settings of the `token` kind."""

    tokens: int
    width: int
    vocabulary: int
    support: int
    order: int
    full_order: int


@dataclass(frozen=True)
class Case:
    """What is run, and the least it must do.

    Attributes:
        call: One forward and backward.
        products: How many T×V×d products the method needs at least; None where that says nothing.
    """

    call: Callable[[], object]
    products: float | None = None


class Problem:
    """Hidden states, head and labels of one size, and every way to turn them into a loss."""

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(size.tokens, size.width, generator=generator)
        weight = torch.randn(size.vocabulary, size.width, generator=generator) * size.width**-0.5
        self.hidden = hidden.to(device, dtype).requires_grad_()
        self.weight = weight.to(device, dtype).requires_grad_()
        self.labels = torch.randint(size.vocabulary, (size.tokens,), generator=generator).to(device)
        self.size = size

    def reset(self) -> None:
        """Drop the gradients."""
        self.hidden.grad = self.weight.grad = None

    def cases(self) -> dict[str, Case]:
        """Every case that can run here, by name."""
        size = self.size
        # `marginal` and `expected` see the head twice. Products with other shapes are counted by their arithmetic:
        # ρ and its row gradients take V·d² each where a product takes T·V·d.
        rows = size.width / size.tokens
        found = {
            PRODUCTS: Case(self.products, 3),
            HUGGING_FACE: Case(self.hugging_face, 3),
        }
        if hasattr(F, "linear_cross_entropy"):
            found["torch linear_cross_entropy"] = Case(self.torch_linear(None), 3)
        if hasattr(torch.nn, "LinearCrossEntropyOptions"):
            found["torch, chunked"] = Case(self.torch_linear(torch.nn.LinearCrossEntropyOptions()), 3)
        if self.hidden.is_cuda and find_spec("liger_kernel") is not None:
            found["Liger"] = Case(self.liger(), 3)
        found[WEIGHT_0] = Case(self.ours(weight=0.0), 3)
        found[f"token, support {size.support}, order {size.order}"] = Case(
            self.ours(support=size.support, order=size.order), 3
        )
        found[f"token, full, order {size.full_order}"] = Case(
            self.ours(support=None, order=size.full_order), 3 + 2 * size.full_order - 1
        )
        found["label smoothing"] = Case(self.ours(loss="label_smoothing"), 3)
        found["EMO"] = Case(self.ours(loss="emo"), 4)  # one for the costs of every token to the target
        found["marginal"] = Case(self.ours(kind="marginal"), 4 + rows)
        found["expected"] = Case(self.ours(kind="expected"), 6)
        return found

    def products(self) -> None:
        """The three products that no cross-entropy does without: logits, dH, dW."""
        with torch.no_grad():
            logits_TV = self.hidden @ self.weight.T
            logits_TV @ self.weight
            logits_TV.T @ self.hidden

    def hugging_face(self) -> None:
        """The head and the loss as a causal model's forward calls them; the output keeps the logits."""
        from transformers.loss.loss_utils import ForCausalLMLoss

        logits = F.linear(self.hidden, self.weight).unsqueeze(0)
        loss = ForCausalLMLoss(
            logits,
            None,
            self.size.vocabulary,
            shift_labels=self.labels.unsqueeze(0),
        )
        loss.backward()

    def torch_linear(self, options: Any) -> Callable[[], None]:
        """torch.nn.functional.linear_cross_entropy, plain or in chunks."""

        def run() -> None:
            F.linear_cross_entropy(self.hidden, self.weight, self.labels, options=options).backward()

        return run

    def liger(self) -> Callable[[], None]:
        """Liger-Kernel's fused linear cross-entropy."""
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss()
        return lambda: loss(self.weight, self.hidden, self.labels).backward()

    def ours(self, **settings: Any) -> Callable[[], None]:
        """linear_matrix_cross_entropy with these settings."""
        config = MatrixLossConfig(**settings)

        def run() -> None:
            linear_matrix_cross_entropy(self.hidden, self.weight, self.labels, config).loss.backward()

        return run


def measure(size: Size, dtype: torch.dtype, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """One row for each case that fits."""
    problem = Problem(size, dtype, device)
    cases = problem.cases()
    fitting = {}
    for name, case in cases.items():
        with out_of_memory_as_none():
            case.call()
            fitting[name] = case.call
        problem.reset()
    seen = compare(fitting, device, repeats, problem.reset)
    return [row(name, cases[name], seen) for name in fitting]


def row(name: str, case: Case, seen: dict[str, Measurement]) -> dict[str, Any]:
    """Figures and ratios of one case."""
    result = seen[name]
    base, plain = seen.get(WEIGHT_0), seen.get(HUGGING_FACE)
    product = seen[PRODUCTS].median / 3
    floor = None if case.products is None else case.products * product
    return {
        "case": name,
        "seconds": result.median,
        "fastest": min(result.seconds),
        "peak_bytes": result.peak_bytes,
        "against_hugging_face": plain and result.median / plain.median,
        "against_weight_0": base and result.median / base.median,
        "memory_against_hugging_face": (
            result.peak_bytes / plain.peak_bytes
            if plain and plain.peak_bytes and result.peak_bytes is not None
            else None
        ),
        "floor_seconds": floor,
    }


def print_rows(size: Size, rows: list[dict[str, Any]]) -> None:
    """The table of one size."""
    print(f"\nT={size.tokens}  d={size.width}  V={size.vocabulary}")
    header = ["case", "ms", "× HF", "× weight 0", "peak MiB", "× HF memory", "floor ms", "× floor"]
    cells = [
        [
            r["case"],
            milliseconds(r["seconds"]),
            ratio(r["against_hugging_face"], 1),
            ratio(r["against_weight_0"], 1),
            mebibytes(r["peak_bytes"]),
            ratio(r["memory_against_hugging_face"], 1),
            "–" if r["floor_seconds"] is None else milliseconds(r["floor_seconds"]),
            ratio(r["seconds"], r["floor_seconds"]),
        ]
        for r in rows
    ]
    print(table(header, cells), flush=True)


def sizes_of(arguments: argparse.Namespace) -> dict[str, list[Size]]:
    """Axis → sizes along it; one size under the empty name without a sweep."""
    base = Size(
        arguments.tokens,
        arguments.width,
        arguments.vocabulary,
        arguments.support,
        arguments.order,
        arguments.full_order,
    )
    if not arguments.sweep:
        return {"": [base]}
    values = {name: [max(1, int(asdict(base)[name] * f)) for f in _SWEEP] for name in asdict(base)}
    return {
        name: [Size(**{**asdict(base), name: value}) for value in values[name]]
        for name in ("vocabulary", "width", "tokens", "support")
    }


def plot(path: Path, swept: dict[str, list[tuple[Size, list[dict[str, Any]]]]]) -> None:
    """Time against V, d, T and k, as a multiple of plain Hugging Face at the same size."""
    from matplotlib.figure import Figure

    symbols = {"vocabulary": "vocabulary V", "width": "width d", "tokens": "tokens T", "support": "support k"}
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for panel, (axis, results) in zip(panels, swept.items(), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for size, rows in results:
            for r in rows:
                label = "token, support k" if r["case"].startswith("token, support") else r["case"]
                if r["against_hugging_face"] is not None and not label.startswith("torch"):
                    lines.setdefault(label, []).append((getattr(size, axis), r["against_hugging_face"]))
        for label, points in lines.items():
            plain = label in (PRODUCTS, HUGGING_FACE)
            style: dict[str, Any] = {"color": "grey", "linestyle": ":" if label == PRODUCTS else "--"}
            panel.plot(*zip(*points, strict=True), label=label, **(style if plain else {"marker": "o"}))
        panel.set(xscale="log", xlabel=symbols[axis], ylabel="time, × Hugging Face", ylim=(0, None))
        panel.set_xticks([getattr(size, axis) for size, _ in results])
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    base = swept["vocabulary"][_SWEEP.index(1)][0]
    figure.suptitle(
        "Forward + backward of the head's loss, against plain Hugging Face at the same size\n"
        f"(around T={base.tokens}, d={base.width}, V={base.vocabulary}, k={base.support})"
    )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", type=positive, default=1024, help="T, positions with a label (default 1024)"
    )
    parser.add_argument("--width", type=positive, default=1024, help="d (default 1024)")
    parser.add_argument("--vocabulary", type=positive, default=32000, help="V (default 32000)")
    parser.add_argument("--support", type=positive, default=64, help="k of the token kind (default 64)")
    parser.add_argument("--order", type=positive, default=8, help="Lanczos steps with a support (default 8)")
    parser.add_argument(
        "--full-order", type=positive, default=4, help="and over the full vocabulary (default 4)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of hidden states and head")
    parser.add_argument("--device", type=device_argument, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--repeats", type=positive, default=5, help="timed rounds (default 5)")
    parser.add_argument(
        "--sweep", action="store_true", help="vary V, d, T and k around the size that is given"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--plot", type=Path, help="with --sweep: write cost against V, d, T and k there (PNG)"
    )
    parsed = parser.parse_args(arguments)
    if parsed.support >= parsed.vocabulary:
        parser.error("--support must be smaller than --vocabulary; the full vocabulary is a case of its own")
    if parsed.plot and not parsed.sweep:
        parser.error("--plot draws a sweep: add --sweep")
    return parsed


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    swept: dict[str, list[tuple[Size, list[dict[str, Any]]]]] = {}
    about = machine(options.device)
    print("  ".join(f"{key} {value}" for key, value in about.items()), f" {options.dtype}")
    for axis, sizes in sizes_of(options).items():
        swept[axis] = []
        for size in sizes:
            rows = measure(size, DTYPES[options.dtype], options.device, options.repeats)
            print_rows(size, rows)
            swept[axis].append((size, rows))
    if options.json:
        results = [
            {"axis": axis, **asdict(size), "rows": rows}
            for axis, found in swept.items()
            for size, rows in found
        ]
        options.json.write_text(
            json.dumps({"machine": about, "dtype": options.dtype, "results": results}, indent=2)
        )
    if options.plot:
        plot(options.plot, swept)


if __name__ == "__main__":
    main()
