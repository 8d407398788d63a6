"""Everything that is claimed of the losses, measured on one GPU in one run of less than ten minutes.

    python benchmarks/gpu_report.py --json gpu.json
    python benchmarks/gpu_report.py --parts losses step --json gpu.json
    python benchmarks/gpu_report.py --device cpu --quick

The parts run in order of importance. Each has seconds of its own, after which the cases that are left are skipped and
named; so are parts for which the whole has no time left. What a part found is on disk when the next begins. A fault
ends its part or its case alone, is shown, and makes the exit code 1. `--quick` shrinks all sizes until everything runs
on a CPU, which tries the script and tells nothing about a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when CUDA starts: without it cuBLAS refuses to be deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from gpu_checks import correctness, host_waits, rates
from gpu_comparisons import kernels, losses, step
from measuring import device_argument, machine, new_file, positive
from report_parts import Clock, Setting, Skipped
from rich.console import Console
from rich.table import Table

from mce_llm.running.files import write_json

_LIMIT = 580.0  # seconds for everything
_PIPE_WIDTH = 160

# Name → seconds, and what is measured.
PARTS: dict[str, tuple[float, Callable[[Setting, Clock], dict[str, Any]]]] = {
    "rates": (45.0, rates),
    "correctness": (90.0, correctness),
    "host waits": (30.0, host_waits),
    "losses": (180.0, losses),
    "kernels": (60.0, kernels),
    "step": (170.0, step),
}


def run_part(name: str, setting: Setting, left: float) -> dict[str, Any]:
    """One part: its figures, `skipped` and `faults` with a reason for each name, and its seconds.

    Args:
        name: In `PARTS`.
        setting: Sizes and device.
        left: Seconds that the whole has left.
    """
    seconds, measure = PARTS[name]
    if left <= 0:
        return {"skipped": {name: "no time was left"}, "faults": {}, "seconds": 0.0}
    clock = Clock(min(seconds, left))
    found: dict[str, Any] = {}
    try:
        found = measure(setting, clock)
    except Skipped as reason:
        clock.skipped[name] = str(reason)
    except Exception:
        clock.faults[name] = traceback.format_exc(limit=4)
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return {**found, "skipped": clock.skipped, "faults": clock.faults, "seconds": round(clock.elapsed, 1)}


def show(name: str, found: dict[str, Any], console: Console) -> None:
    """What one part found."""
    console.print(f"\n{name}: {found['seconds']} s", style="bold", highlight=False)
    rows = found.get("rows", [])
    if rows:
        table = Table()
        header = list(dict.fromkeys(key for row in rows for key in row))
        for number, key in enumerate(header):
            table.add_column(key.replace("_", " "), justify="left" if number < 2 else "right")
        for row in rows:
            table.add_row(*(_cell(row.get(key)) for key in header))
        console.print(table)
    for key, value in found.get("notes", {}).items():
        console.print(f"  {key}: {value}", markup=False)
    for what, reason in found["skipped"].items():
        console.print(f"  skipped {what}: {reason}", markup=False)
    for what, reason in found["faults"].items():
        console.print(f"  FAULT in {what}:\n{reason}", markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="default all")
    parser.add_argument("--device", type=device_argument, default=None, help="default cuda")
    parser.add_argument("--quick", action="store_true", help="sizes for a CPU, in about a minute")
    parser.add_argument(
        "--tokens", type=positive, default=None, help="positions of the losses (default 8192; quick: 64)"
    )
    parser.add_argument("--seconds", type=positive, default=int(_LIMIT), help="for everything (default 580)")
    parser.add_argument(
        "--json",
        type=new_file,
        default=Path("gpu_report.json"),
        help="default gpu_report.json; kept up to date",
    )
    options = parser.parse_args(arguments)
    if options.device is None:
        if not torch.cuda.is_available():
            parser.error("this machine has no CUDA device; --device cpu --quick tries the script on the CPU")
        options.device = torch.device("cuda")
    if options.device.type == "cpu" and not options.quick:
        parser.error("on a CPU the full sizes take hours; add --quick")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure part by part, write, print; 1 if anything failed."""
    options = parse(arguments)
    begin = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    setting = Setting(options.device, options.quick, options.tokens or (64 if options.quick else 8192))
    about = machine(options.device)
    record: dict[str, Any] = {"machine": about, "quick": options.quick, "tokens": setting.tokens, "parts": {}}
    console.print("  ".join(f"{key} {value}" for key, value in about.items()), markup=False)
    if options.quick:
        console.print("Quick: the sizes are too small to say anything about speed.")
    for name in PARTS:
        if name not in options.parts:
            continue
        found = run_part(name, setting, options.seconds - (time.monotonic() - begin))
        record["parts"][name] = found
        write_json(options.json, record)
        show(name, found, console)
    console.print(f"\nAll parts, in {options.json}", style="bold", highlight=False, markup=False)
    table = Table()
    for column in ("part", "seconds", "skipped", "faults"):
        table.add_column(column)
    for name, found in record["parts"].items():
        table.add_row(
            name, f"{found['seconds']:.1f}", ", ".join(found["skipped"]), ", ".join(found["faults"])
        )
    console.print(table)
    return int(any(found["faults"] for found in record["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
