"""The matrix logarithm from an eigendecomposition and from matrix products, forward and backward, in one run.

    python benchmarks/matrix_logarithm.py --device cuda --width 2048 4096 --dtype float32 float64
    python benchmarks/matrix_logarithm.py --width 256 1024 2048

Two quantities: log A with the gradient of ⟨G, log A⟩, and the matrix cross-entropy with its gradient to Q. Errors are
relative Frobenius norms against the eigendecomposition in float64. A and Q are covariances of rows whose scales fall off
like a power law, as those of token embeddings do, shrunk towards the identity by --shrinkage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
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
    positive,
    ratio,
    table,
)
from torch import Tensor

from mce_llm.matrix import (
    covariance,
    full_precision_product,
    matrix_cross_entropy,
    matrix_log,
    shrink,
)
from mce_llm.matrix.rational_log import resolvents

METHODS = ("eigh", "rational")


def density(width: int, seed: int, shrinkage: float, device: torch.device) -> Tensor:
    """A density matrix in float64 with a power-law spectrum above the shrinkage."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, width + 1, dtype=torch.float64).pow(-0.75).to(device)
    rows = torch.randn(2 * width, width, dtype=torch.float64, generator=generator).to(device) * scales
    mixing = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator).to(device)).Q
    matrix = covariance(rows @ mixing, center=False)
    return shrink(matrix / matrix.trace(), shrinkage)


def logarithm(A: Tensor, G: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Log A and the gradient of ⟨G, log A⟩."""
    leaf = A.detach().requires_grad_()
    value = matrix_log(leaf, validate=False, method=method)
    return value.detach(), torch.autograd.grad(value, leaf, G)[0]


def cross_entropy(P: Tensor, Q: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """MCE(P, Q) and its gradient to Q."""
    leaf = Q.detach().requires_grad_()
    value = matrix_cross_entropy(P, leaf, validate=False, method=method)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference over that of the exact one."""
    return float((found.double() - exact).norm() / exact.norm())


def measure(width: int, dtype: torch.dtype, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for one product, then one for each quantity and method."""
    device = options.device
    exact_P, exact_Q = (density(width, seed, options.shrinkage, device) for seed in (1, 2))
    P, Q = exact_P.to(dtype), exact_Q.to(dtype)
    G = P / P.norm()
    poles = len(resolvents(Q).approximation.shifts)
    quantities: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], tuple[Tensor, ...]]] = {
        "logarithm": (logarithm, (Q, G)),
        "cross-entropy": (cross_entropy, (P, Q)),
    }
    calls: dict[str, Callable[[], object]] = {"one product": lambda: full_precision_product(P, Q)}
    for name, (function, inputs) in quantities.items():
        for method in METHODS:
            calls[f"{name}, {method}"] = lambda f=function, x=inputs, m=method: f(*x, m)  # type: ignore[misc]
    seen = compare(calls, device, options.repeats)
    product = seen["one product"].median
    common = {"width": width, "dtype": str(dtype).removeprefix("torch."), "device": device.type}
    rows: list[dict[str, Any]] = [
        {**common, "case": "one product", "seconds": product, "peak_bytes": seen["one product"].peak_bytes}
    ]
    for name, (function, inputs) in quantities.items():
        exact = function(*(x.double() for x in inputs), "eigh")
        for method in METHODS:
            case = f"{name}, {method}"
            value, gradient = function(*inputs, method)
            rows.append(
                {
                    **common,
                    "case": case,
                    "seconds": seen[case].median,
                    "peak_bytes": seen[case].peak_bytes,
                    "in_products": seen[case].median / product,
                    "speedup": seen[f"{name}, eigh"].median / seen[case].median,
                    "value_error": relative_error(value, exact[0]),
                    "gradient_error": relative_error(gradient, exact[1]),
                    "poles": poles if method == "rational" else None,
                }
            )
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=positive, nargs="+", default=[256, 1024], help="d (default 256 1024)")
    full = [name for name in DTYPES if name in ("float32", "float64")]
    parser.add_argument("--dtype", choices=full, nargs="+", default=["float32"], help="default float32")
    parser.add_argument("--shrinkage", type=float, default=0.05, help="ε of the matrices (default 0.05)")
    parser.add_argument("--device", type=device_argument, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--repeats", type=positive, default=5, help="timed rounds (default 5)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    if not 0 < options.shrinkage < 1:
        parser.error(f"--shrinkage must be between 0 and 1, got {options.shrinkage}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    about = machine(options.device)
    print("  ".join(f"{key} {value}" for key, value in about.items()), f" shrinkage {options.shrinkage}")
    header = ["case", "ms", "products", "× faster", "peak MiB", "value error", "gradient error", "poles"]
    results: list[dict[str, Any]] = []
    for dtype in options.dtype:
        for width in options.width:
            rows = measure(width, DTYPES[dtype], options)
            cells = [
                [
                    row["case"],
                    milliseconds(row["seconds"]),
                    ratio(row.get("in_products"), 1),
                    ratio(row.get("speedup"), 1),
                    mebibytes(row["peak_bytes"]),
                    f"{row['value_error']:.0e}" if "value_error" in row else "–",
                    f"{row['gradient_error']:.0e}" if "gradient_error" in row else "–",
                    row.get("poles") or "–",
                ]
                for row in rows
            ]
            print(f"\nd = {width}, {dtype}\n{table(header, cells)}", flush=True)
            results += rows
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(
            json.dumps({"machine": about, "settings": settings, "rows": results}, indent=2)
        )


if __name__ == "__main__":
    main()
