"""Estimates of what the losses cost on a GPU, from a dry run without one.

    python benchmarks/gpu_dry_run.py
    python benchmarks/gpu_dry_run.py --tokens 4096 --vocabulary 151936 --cases stock "weight 0" token --json dry.json

Forward and backward pass of each loss run on fake CUDA tensors, which have shapes and no memory. Counted are launches,
bytes, arithmetic, places where the host waits for the device, and the peak of what is held beside the inputs; a launch
takes the longest of its three (`roofline`). Times are estimates, and so is what follows from them: nothing here was
measured. One operation is one launch; a library may start several kernels for it and hold memory of its own. All
labels count, none is ignored.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from device_trace import DeviceTrace, fake_cuda
from fake_backward import backward
from kernel_costs import COSTS
from measuring import DTYPES, mebibytes, new_file, positive, progress, ratio
from op_costs import KERNEL_COSTS
from rehearsal import Answers, rehearse
from rich.console import Console
from rich.table import Table
from roofline import Machine, flops_by_dtype, seconds_by_stage, stage_of
from torch import Tensor

import mce_llm
from mce_llm.lm import MatrixLossConfig, linear_matrix_cross_entropy
from mce_llm.lm.kernels import launching
from mce_llm.lm.kernels.launching import CHOICES, VARIABLE

ROOT = Path(mce_llm.__file__).parent
KERNEL_COSTS.update(COSTS)
Loss = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]

STOCK, WEIGHT_0 = "stock", "weight 0"
SETTINGS: dict[str, dict[str, Any]] = {
    WEIGHT_0: {"weight": 0.0},
    "token": {},
    "marginal": {"kind": "marginal"},
    "expected": {"kind": "expected"},
    "label smoothing": {"loss": "label_smoothing"},
    "EMO": {"loss": "emo"},
}
CASES = (STOCK, *SETTINGS)

GRAM = "gather, Gram"
GRADIENTS = "dH, dW"
LOGARITHM = "Lanczos, log"
LOGITS = "logits, softmax"
REST = "top-k, gradient, geometry"
STAGES = (LOGITS, REST, GRAM, LOGARITHM, GRADIENTS)
# The innermost of these functions decides which stage a launch belongs to; without any it is the rest.
STAGE_OF = {
    "linear_head.LinearHead": LOGITS,
    "linear_loss._softmax_": LOGITS,
    "token_form.frame_gram": GRAM,
    "token_form._frame_products": GRAM,
    "token_form.token_form": LOGARITHM,
    "token_form.fused_token_form": LOGARITHM,
    "tridiagonal_poles": LOGARITHM,
    "row_softmax.row_statistics": LOGITS,
    "batch_kernel.marginal_density": GRAM,
    "batch_kernel._Expected.add": GRAM,
    "krylov": LOGARITHM,
    "information": LOGARITHM,
    "logarithm": LOGARITHM,
    "rational_log": LOGARITHM,
    "linear_head.HeadGradients": GRADIENTS,
    "linear_loss._FusedLoss.backward": GRADIENTS,
}
# What code that only runs on a GPU reads: bounds on a condition number, and whether a factorisation failed.
_ANSWERS = {"rational_log.resolvents": [1e4, 0.0]}
_ASSUMED = {
    "bandwidth": "TB/s of memory",
    "bfloat16": "TFLOP/s of bfloat16 and float16",
    "float32": "TFLOP/s of float32",
    "float64": "TFLOP/s of float64",
    "launch": "µs of a launch at least",
    "eigh_call": "µs of a batch of small eigendecompositions at least",
    "eigh_matrix": "µs that each of them adds",
}
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
_LARGEST = 3  # of what is held at the peak
_PIPE_WIDTH = 200
_STEP_TOKENS = 8192  # of the step that is compared with


def stock(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int | None) -> Tensor:
    """Cross-entropy as causal models of Hugging Face compute it: all logits, then all of them in float32."""
    logits_TV = F.linear(hidden, weight)
    upcast_TV = logits_TV.float()
    return F.cross_entropy(upcast_TV, labels)


def ours(settings: dict[str, Any]) -> Loss:
    """linear_matrix_cross_entropy with these settings."""
    config = MatrixLossConfig(**settings)

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int | None) -> Tensor:
        return linear_matrix_cross_entropy(hidden, weight, labels, config, chunk_size=chunk_size).loss

    return loss


def prepare(loss: Loss, width: int, dtype: torch.dtype, choice: str) -> Answers:
    """What the host reads in a small problem without anything unusual, and one call before those that count.

    What a loss keeps on the device from one call to the next is then there.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 32, generator=generator).requires_grad_()
    weight = torch.randn(256, 32, generator=generator).requires_grad_()
    labels = torch.randint(256, (16,), generator=generator)
    answers = rehearse(lambda: loss(hidden, weight, labels, None).backward(), ROOT, _ANSWERS)
    dry_run(loss, 16, 256, width, dtype, answers=answers, choice=choice)
    return answers


def dry_run(
    loss: Loss,
    tokens: int,
    vocabulary: int,
    width: int,
    dtype: torch.dtype,
    chunk_size: int | None = None,
    answers: Answers | None = None,
    choice: str = "auto",
) -> DeviceTrace:
    """Forward and backward of one loss on fake tensors.

    Args:
        loss: `stock`, or from `ours`.
        tokens: T positions, all with a label.
        vocabulary: V.
        width: d.
        dtype: Of hidden states and head.
        chunk_size: Positions a chunk; by default the loss chooses.
        answers: Of `prepare`; by default it is called.
        choice: As `MCE_LLM_KERNELS`.
    """
    answers = answers or prepare(loss, width, dtype, choice)
    with fake_cuda(), kernels(choice):
        hidden = torch.empty(tokens, width, dtype=dtype, device="cuda").requires_grad_()
        weight = torch.empty(vocabulary, width, dtype=dtype, device="cuda").requires_grad_()
        labels = torch.empty(tokens, dtype=torch.int64, device="cuda")
        with DeviceTrace(ROOT, answers) as trace:
            backward(lambda: loss(hidden, weight, labels, chunk_size))
    return trace


@contextmanager
def kernels(choice: str) -> Iterator[None]:
    """Choose kernels as the environment does, and say that there is a GPU for them."""
    with patch.dict(os.environ, {VARIABLE: choice}), patch.object(launching, "has_gpu", lambda: True):
        yield


def loss_of(case: str) -> Loss:
    """The loss of a name in `CASES`."""
    return stock if case == STOCK else ours(SETTINGS[case])


def chunk_rows(trace: DeviceTrace, vocabulary: int) -> list[int]:
    """Positions of each product with the head that gives logits, in order; there is one for each chunk and pass."""
    return [
        launch.shape[0]
        for launch in trace.launches
        if launch.name in ("mm", "addmm")
        and launch.shape[-1] == vocabulary
        and stage_of(launch.place, STAGE_OF, REST) == LOGITS
    ]


def measure(case: str, vocabulary: int, options: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """Everything that is counted and estimated of one case, in bytes and seconds."""
    loss, dtype = loss_of(case), DTYPES[options.dtype]
    answers = prepare(loss, options.width, dtype, options.kernels)
    run = partial(
        dry_run,
        loss,
        vocabulary=vocabulary,
        width=options.width,
        dtype=dtype,
        answers=answers,
        choice=options.kernels,
    )
    trace = run(tokens=options.tokens)
    rows = chunk_rows(trace, vocabulary)
    size = max(rows, default=options.tokens)
    longer = run(tokens=options.tokens + size, chunk_size=size)  # what one chunk more adds
    stages = seconds_by_stage(trace.launches, machine, STAGE_OF, REST)
    return {
        "vocabulary": vocabulary,
        "case": case,
        "seconds": sum(stages.values()),
        "stages": {} if case == STOCK else stages,
        "chunks": -(-options.tokens // size),
        "chunk_size": size,
        "launches": len(trace.launches),
        "launches_per_chunk": len(longer.launches) - len(trace.launches),
        "waits": [
            {"reason": reason, "place": place, "count": count}
            for (reason, place), count in Counter((w.reason, str(w.place)) for w in trace.waits).items()
        ],
        "waits_per_chunk": len(longer.waits) - len(trace.waits),
        "bytes_read": sum(launch.cost.read for launch in trace.launches),
        "bytes_written": sum(launch.cost.written for launch in trace.launches),
        "flops": flops_by_dtype(trace.launches),
        "peak_bytes": trace.peak,
        "peak_place": str(trace.peak_place),
        "held_at_peak": [(size, str(place)) for size, place in trace.held_at_peak()],
        "peak_by_tokens": {tokens: run(tokens=tokens).peak for tokens in options.peak_tokens},
    }


def compared(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Add to each row what it is against stock and weight 0 with the same vocabulary, where they were run."""
    step = options.step * options.tokens / _STEP_TOKENS
    by_name = {(row["vocabulary"], row["case"]): row for row in rows}
    for row in rows:
        for name, key in ((STOCK, "stock"), (WEIGHT_0, "weight_0")):
            base = by_name.get((row["vocabulary"], name))
            row[f"against_{key}"] = base and row["seconds"] / base["seconds"]
            row[f"step_against_{key}"] = base and 1 + (row["seconds"] - base["seconds"]) / step
            row[f"peak_against_{key}"] = base and row["peak_bytes"] / base["peak_bytes"]
            row[f"peak_by_tokens_against_{key}"] = base and {
                tokens: peak / base["peak_by_tokens"][tokens]
                for tokens, peak in row["peak_by_tokens"].items()
            }


def show(rows: list[dict[str, Any]], options: argparse.Namespace, console: Console) -> None:
    """The tables."""
    against = ["× stock", "× weight 0", "7B step to stock", "to weight 0"]
    times = _table("Estimated time, ms", ["V", "case", *STAGES, "all", *against])
    counted = ["chunks", "launches", "a chunk", "waits", "a chunk", "GB read", "GB written", "TFLOP"]
    peaks = ["peak MiB", "× stock", *(f"T={tokens}" for tokens in options.peak_tokens)]
    counts = _table("Counted, and estimated peak", ["V", "case", *counted, *peaks])
    for row in rows:
        begin = f"{row['vocabulary']:,}", row["case"]
        times.add_row(
            *begin,
            *(_ms(row["stages"].get(stage)) for stage in STAGES),
            _ms(row["seconds"]),
            ratio(row["against_stock"], 1),
            ratio(row["against_weight_0"], 1),
            _percent(row["step_against_stock"]),
            _percent(row["step_against_weight_0"]),
        )
        counts.add_row(
            *begin,
            f"{row['chunks']}",
            f"{row['launches']:,}",
            f"{row['launches_per_chunk']:,}",
            f"{sum(wait['count'] for wait in row['waits'])}",
            f"{row['waits_per_chunk']}",
            f"{row['bytes_read'] / 1e9:.1f}",
            f"{row['bytes_written'] / 1e9:.1f}",
            ", ".join(f"{n / 1e12:.2f} {_SHORT[t]}" for t, n in row["flops"].items() if n >= 5e9),
            mebibytes(row["peak_bytes"]),
            ratio(row["peak_against_stock"], 1),
            *(
                ratio((row["peak_by_tokens_against_stock"] or {}).get(tokens), 1)
                for tokens in options.peak_tokens
            ),
        )
    places = _table("Host waits of a micro-step, and the peak", ["V", "case", "what", "where", "count"])
    for row in rows:
        begin = f"{row['vocabulary']:,}", row["case"]
        for wait in row["waits"]:
            places.add_row(*begin, wait["reason"], wait["place"], f"{wait['count']}")
        places.add_row(*begin, "peak", row["peak_place"], f"{mebibytes(row['peak_bytes'])} MiB")
        for size, place in row["held_at_peak"][:_LARGEST]:
            places.add_row(*begin, "  holds", place, f"{mebibytes(size)} MiB")
    for found in (times, counts, places):
        console.print(found)


def _table(title: str, header: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 2 or name in ("what", "where") else "right")
    return table


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.1f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * (share - 1):+.1f} %"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=positive, default=8192, help="positions with a label (default 8192)")
    parser.add_argument(
        "--vocabulary",
        type=positive,
        nargs="+",
        default=[32000, 128256, 262144],
        help="default 32000 128256 262144",
    )
    parser.add_argument("--width", type=positive, default=4096, help="of hidden states (default 4096)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of all inputs (default bfloat16)"
    )
    parser.add_argument(
        "--kernels",
        choices=CHOICES,
        default="auto",
        help="Triton programs where they can run, or torch's own operations (default auto)",
    )
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES), help="default all")
    parser.add_argument(
        "--peak-tokens",
        type=positive,
        nargs="*",
        default=[512, 1024, 2048, 4096],
        help="positions for which the peak is compared too (default 512 1024 2048 4096)",
    )
    parser.add_argument(
        "--step",
        type=_amount,
        default=0.66,
        help="assumed seconds of a training step of a 7B model with recomputation, for 8,192 tokens (default 0.66)",
    )
    for assumed in fields(Machine):
        parser.add_argument(
            f"--{assumed.name.replace('_', '-')}",
            type=_amount,
            default=assumed.default,
            help=f"assumed {_ASSUMED[assumed.name]} (default {assumed.default:g})",
        )
    parser.add_argument("--json", type=new_file, help="write the figures there")
    return parser.parse_args(arguments)


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def main(arguments: list[str] | None = None) -> None:
    """Count, estimate, print, write."""
    options = parse(arguments)
    machine = Machine(**{name.name: getattr(options, name.name) for name in fields(Machine)})
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    rows = []
    for vocabulary in options.vocabulary:
        for case in options.cases:
            progress(f"V={vocabulary}: {case}")
            rows.append(measure(case, vocabulary, options, machine))
    progress("")
    compared(rows, options)
    console.print(
        f"Estimates, nothing measured: T={options.tokens} d={options.width} {options.dtype}, forward and backward. Assumed: "
        + ", ".join(f"{_ASSUMED[name]} {value:g}" for name, value in asdict(machine).items())
        + f"; a 7B step {options.step:g} s for {_STEP_TOKENS:,} tokens.\n"
    )
    show(rows, options, console)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"estimates": True, "settings": settings, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
