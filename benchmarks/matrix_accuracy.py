"""How exact the matrix functions are: largest relative deviations from scipy.linalg.logm in float64.

Prints two tables. The first compares values, over dtypes, sizes and condition numbers; the reference is formed
in float64 from the very numbers that the function is given, so it shows the function's own error, not that of
rounding its input. The second compares gradients at the identity and at clustered spectra, where differentiating
through an eigendecomposition fails; its reference is a block of the logarithm of [[A, W], [0, A]].

    python benchmarks/matrix_accuracy.py --json accuracy.json
"""

import argparse
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import scipy
import scipy.linalg
import torch
from torch import Tensor

from mce_llm.matrix import matrix_cross_entropy, matrix_entropy, matrix_log

DTYPES = {"float64": torch.float64, "float32": torch.float32}
SPECTRA = {
    "identity": [1.0] * 8,
    "two clusters": [0.25] * 4 + [2.0] * 4,
    "nearly equal (1e-12)": [1.0 + 1e-12 * i for i in range(8)],
    "nearly equal (1e-7)": [1.0 + 1e-7 * i for i in range(8)],
    "one large, rest equal": [1.0] + [1e-3] * 7,
    "log-spaced to 1e-4": [10 ** (-4 * i / 7) for i in range(8)],
}


def with_spectrum(values: Tensor, generator: torch.Generator) -> Tensor:
    """A symmetric float64 matrix with the given eigenvalues in a random basis."""
    U = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    A = (U * values) @ U.mT
    return (A + A.mT) / 2


def reference_log(A: Tensor) -> Tensor:
    """scipy.linalg.logm in float64 (it judges itself by exp(log A) − A, and warns at these sizes)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return torch.from_numpy(np.ascontiguousarray(scipy.linalg.logm(A.double().numpy()).real))


def relative(value: Tensor, reference: Tensor) -> float:
    """Largest absolute deviation over the largest absolute reference entry."""
    return ((value.double() - reference).abs().max() / reference.abs().max()).item()


def value_rows(sizes: list[int], conditions: list[float], seed: int) -> list[dict[str, object]]:
    """Deviations of log, entropy and cross-entropy for trace-one matrices of the given condition numbers."""
    rows: list[dict[str, object]] = []
    for size in sizes:
        for condition in conditions:
            generator = torch.Generator().manual_seed(seed)
            spectrum = torch.logspace(0, -math.log10(condition), size, dtype=torch.float64)
            Q64 = with_spectrum(spectrum / spectrum.sum(), generator)
            weights = torch.rand(size, generator=generator, dtype=torch.float64)
            P64 = with_spectrum(weights / weights.sum(), generator)
            for name, dtype in DTYPES.items():
                P, Q = P64.to(dtype), Q64.to(dtype)
                exact = reference_log(Q)
                P_exact, Q_exact = P.double(), Q.double()
                entropy = -(Q_exact * exact).sum() + torch.trace(Q_exact)
                cross = -(P_exact * exact).sum() + torch.trace(Q_exact)
                rows.append(
                    {
                        "dtype": name,
                        "size": size,
                        "condition": condition,
                        "matrix_log": relative(matrix_log(Q), exact),
                        "matrix_entropy": relative(matrix_entropy(Q), entropy),
                        "matrix_cross_entropy": relative(matrix_cross_entropy(P, Q), cross),
                    }
                )
    return rows


def through_eigh(A: Tensor) -> Tensor:
    """The logarithm as autograd would differentiate it, for comparison."""
    values, vectors = torch.linalg.eigh(A)
    return (vectors * values.log()) @ vectors.mT


def gradient_rows(seed: int) -> list[dict[str, object]]:
    """Deviations of the gradient of ⟨W, log A⟩; 'inf' stands for a gradient that is not finite."""
    rows: list[dict[str, object]] = []
    for name, spectrum in SPECTRA.items():
        generator = torch.Generator().manual_seed(seed)
        size = len(spectrum)
        A64 = with_spectrum(torch.tensor(spectrum, dtype=torch.float64), generator)
        if name == "identity":
            A64 = torch.eye(size, dtype=torch.float64)  # exactly, not only to rounding
        W = torch.randn(size, size, generator=generator, dtype=torch.float64)
        W = ((W + W.mT) / 2).float()
        for dtype_name, dtype in DTYPES.items():
            A = A64.to(dtype)
            block = torch.zeros(2 * size, 2 * size, dtype=torch.float64)
            block[:size, :size] = block[size:, size:] = A.double()
            block[:size, size:] = W.double()
            exact = reference_log(block)[:size, size:]
            deviations: dict[str, object] = {}
            for label, function in (("matrix_log", matrix_log), ("through eigh", through_eigh)):
                X = A.clone().requires_grad_()
                (function(X) * W.to(dtype)).sum().backward()
                assert X.grad is not None
                gradient = (X.grad + X.grad.mT) / 2
                deviations[label] = (
                    relative(gradient, exact) if bool(torch.isfinite(gradient).all()) else math.inf
                )
            rows.append({"dtype": dtype_name, "spectrum": name, **deviations})
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Rows as a Markdown table."""

    def cell(value: object) -> str:
        return f"{value:.1e}" if isinstance(value, float) else str(value)

    names = list(rows[0])
    columns = [[name, *(cell(row[name]) for row in rows)] for name in names]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "| " + " | ".join(c[i].ljust(w) for c, w in zip(columns, widths, strict=True)) + " |"
        for i in range(len(rows) + 1)
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def main() -> None:
    """Read the options, measure, print, and write the JSON file if one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 64, 256, 512], help="matrix sizes d")
    parser.add_argument(
        "--conditions", type=float, nargs="+", default=[1e2, 1e4, 1e6], help="condition numbers"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random bases")
    parser.add_argument("--threads", type=int, default=1, help="threads that torch may use")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers to this file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    started = time.perf_counter()
    values = value_rows(options.sizes, options.conditions, options.seed)
    gradients = gradient_rows(options.seed)
    seconds = time.perf_counter() - started

    print(f"torch {torch.__version__}, scipy {scipy.__version__}, seed {options.seed}, {seconds:.0f} s\n")
    print(
        "Largest relative deviation from scipy.linalg.logm (float64), trace-one matrices, log-spaced spectra:\n"
    )
    print(table(values))
    print(
        "\nLargest relative deviation of the gradient of <W, log A>, d = 8, from the block formula (float64); inf: not finite:\n"
    )
    print(table(gradients))
    if options.json is not None:
        record = {
            "torch": torch.__version__,
            "scipy": scipy.__version__,
            "seed": options.seed,
            "seconds": seconds,
            "values": values,
            # JSON has no infinity
            "gradients": [
                {key: None if value == math.inf else value for key, value in row.items()} for row in gradients
            ],
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
