"""Time and deviation of the Matrix-SSL loss, forward and backward: as published against ours, in one run.

    python benchmarks/matrix_ssl_loss.py --batch 1024 --dim 2048
    python benchmarks/matrix_ssl_loss.py --device cuda --batch 4096 --dim 2048 --json loss.json

`published` is the formula written out with d×d matrices and an m×m centring matrix, differentiated by autograd. Beside
it stand our two forms, the cheaper one as chosen, and the exact logarithm. Runs alternate. The prediction is the ratio
of multiply-adds, counted from the code.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import (
    DTYPES,
    compare,
    device_argument,
    machine,
    mebibytes,
    milliseconds,
    positive,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mce_llm.vision.losses import MatrixSSLLoss
from mce_llm.vision.losses.terms import cheaper_form

PUBLISHED = "published"
CASES: dict[str, dict[str, Any]] = {
    "ours (auto)": {},
    "ours, gram": {"form": "gram"},
    "ours, dim": {"form": "dim"},
    "ours, exact log": {"log": "exact"},
}


def published_loss(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """λ = μ = γ = 1, order 4, no trace term; everything d×d."""
    total = z1.new_zeros(())
    for p, z in ((p2, z1), (p1, z2)):
        for auto in (False, True):
            P, Z = F.normalize(p), F.normalize(z)
            m, d = Z.shape
            identity = torch.eye(d, device=z.device, dtype=z.dtype)
            centring = torch.eye(m, device=z.device, dtype=z.dtype) - 1 / m
            target = P.T @ centring @ P / m + identity if auto else identity
            Q = (Z if auto else P).T @ centring @ Z / m + identity
            total = total - torch.trace(target @ _log_series(Q)) / 2
    return total


def _log_series(Q: Tensor) -> Tensor:
    X = Q - torch.eye(len(Q), device=Q.device, dtype=Q.dtype)
    total, power = torch.zeros_like(X), X
    for i in range(1, 5):
        total = total + (-1) ** (i + 1) * power / i
        power = power @ X  # one more than is used, as published
    return total


def multiply_adds(m: int, d: int) -> dict[str, float]:
    """Operations of one forward and backward pass, in units of 10⁹.

    Published, for each pair: both terms form Q (one by m×m, one by d×d), raise it to powers and multiply by the
    target; the backward pass has two products for each power. Ours: see `terms`.
    """
    forward = 3 * (m * m * d + m * d * d) + (4 + 1 + 4 + 1) * d**3
    backward = m * m * d + 3 * m * d * d + (6 + 1 + 6 + 1) * d**3
    gram = 3.625 * m * m * d + 6.875 * m**3
    dim = 4.25 * m * d * d + 6.25 * d**3
    chosen = gram if cheaper_form(m, d) == "gram" else dim
    counts = {PUBLISHED: forward + backward, "ours (auto)": chosen, "ours, gram": gram, "ours, dim": dim}
    return {
        name: 4 * count / 1e9 for name, count in counts.items()
    }  # two pairs, an addition for each product


class Problem:
    """Rows of two views, student and teacher, as after a batch norm without affine parameters."""

    def __init__(self, batch: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(batch, dim, generator=generator)
        views = [base + 0.7 * torch.randn(batch, dim, generator=generator) for _ in range(4)]
        self.rows = [view.to(device, dtype) for view in views]
        self.rows[0].requires_grad_()
        self.rows[1].requires_grad_()

    def reset(self) -> None:
        """Drop the gradients."""
        self.rows[0].grad = self.rows[1].grad = None

    def call(self, loss: Callable[..., Tensor]) -> Callable[[], None]:
        """One forward and backward pass."""
        return lambda: loss(*self.rows).backward()

    def value_and_gradient(self, loss: Callable[..., Tensor]) -> tuple[float, Tensor]:
        """The loss and both gradients, one after the other."""
        value = loss(*self.rows)
        return float(value.detach()), torch.cat(torch.autograd.grad(value, self.rows[:2]))


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each case."""
    problem = Problem(arguments.batch, arguments.dim, DTYPES[arguments.dtype], arguments.device)
    losses: dict[str, Callable[..., Tensor]] = {PUBLISHED: published_loss}
    losses |= {name: MatrixSSLLoss(variant="official", **options) for name, options in CASES.items()}
    if arguments.without_exact:
        del losses["ours, exact log"]
    value, gradient = problem.value_and_gradient(published_loss)
    deviations = {}
    for name, loss in losses.items():
        own_value, own_gradient = problem.value_and_gradient(loss)
        deviations[name] = (
            abs(own_value - value) / abs(value),
            float((own_gradient - gradient).norm() / gradient.norm()),
        )
    calls = {name: problem.call(loss) for name, loss in losses.items()}
    seen = compare(calls, arguments.device, arguments.repeats, problem.reset)
    counts = multiply_adds(arguments.batch, arguments.dim)
    return [
        {
            "case": name,
            "seconds": seen[name].median,
            "fastest": min(seen[name].seconds),
            "speedup": seen[PUBLISHED].median / seen[name].median,
            "predicted_speedup": counts[PUBLISHED] / counts[name] if name in counts else None,
            "gigaflop": counts.get(name),
            "peak_bytes": seen[name].peak_bytes,
            "value_deviation": deviations[name][0],
            "gradient_deviation": deviations[name][1],
        }
        for name in losses
    ]


def print_rows(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The table."""
    about = machine(arguments.device)
    title = (
        f"Matrix-SSL loss, forward + backward, batch {arguments.batch}, dim {arguments.dim}, {arguments.dtype}, "
        f"{about['name']}, {about['threads']} threads, torch {about['torch']}, median of {arguments.repeats}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("case", no_wrap=True)
    for column in ("ms", "speed-up", "predicted", "GFLOP", "peak MiB", "Δ value", "Δ gradient"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["case"],
            milliseconds(row["seconds"]),
            f"{row['speedup']:.2f}",
            "–" if row["predicted_speedup"] is None else f"{row['predicted_speedup']:.2f}",
            "–" if row["gigaflop"] is None else f"{row['gigaflop']:.1f}",
            mebibytes(row["peak_bytes"]),
            f"{row['value_deviation']:.1e}",
            f"{row['gradient_deviation']:.1e}",
        )
    Console(width=120).print(table)
    print("Δ is relative to the published formula; the exact logarithm is another function, and differs.")


def main() -> None:
    """Parse, measure, print, and write the JSON file if one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=positive, default=1024, help="rows of each view, m")
    parser.add_argument("--dim", type=positive, default=2048, help="width of the rows, d")
    parser.add_argument("--repeats", type=positive, default=5, help="timed rounds")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", type=device_argument, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--without-exact", action="store_true", help="leave the exact logarithm out")
    parser.add_argument("--threads", type=positive, help="CPU threads; torch's own choice if not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    if arguments.batch < 2:
        parser.error("--batch must be at least 2: one row has no covariance")
    if arguments.device.type not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu or cuda, got {arguments.device}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = measure(arguments)
    print_rows(arguments, rows)
    if arguments.json:
        about = {"batch": arguments.batch, "dim": arguments.dim, "dtype": arguments.dtype}
        text = json.dumps({"machine": machine(arguments.device), **about, "rows": rows}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
