"""What the kernels of the `token` loss take of a GPU: registers, spilled registers, shared memory, programs at a time.

    python benchmarks/kernel_resources.py --json resources.json
    python benchmarks/kernel_resources.py --target cuda:90 --kept 64 --order 8 16

The programs are compiled for each target with the settings that they are started with; that needs Triton and no GPU.
Numbers of NVIDIA targets are read from the binary, those of AMD targets from the assembler. Spilled bytes are those
of the stack, a thread. `programs` is how many fit into a multiprocessor by registers, shared memory and threads, and
`threads` how many threads they have. What it tells about speed is an estimate.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from measuring import new_file, positive, progress, table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mce_llm.lm.kernels import position_program, row_softmax_program, token_form_program
from mce_llm.lm.kernels.launching import power_of_two
from mce_llm.lm.kernels.positions import position_settings
from mce_llm.lm.kernels.row_softmax import row_settings
from mce_llm.lm.kernels.token_form import SMALLEST_TILE, form_settings, gram_settings


@dataclass(frozen=True)
class Multiprocessor:
    """What programs share: 32-bit registers, bytes of shared memory, threads."""

    registers: int
    shared: int
    threads: int
    reserved: int = 1024  # bytes of shared memory that the system takes of each program


TARGETS = {
    "cuda:80": (GPUTarget("cuda", 80, 32), Multiprocessor(65536, 164 * 1024, 2048)),  # A100
    "cuda:86": (GPUTarget("cuda", 86, 32), Multiprocessor(65536, 100 * 1024, 1536)),  # RTX 30
    "cuda:89": (GPUTarget("cuda", 89, 32), Multiprocessor(65536, 100 * 1024, 1536)),  # L4, RTX 40
    "cuda:90": (GPUTarget("cuda", 90, 32), Multiprocessor(65536, 228 * 1024, 2048)),  # H100, H200
    "cuda:100": (GPUTarget("cuda", 100, 32), Multiprocessor(65536, 228 * 1024, 2048)),  # B200
    "hip:gfx90a": (GPUTarget("hip", "gfx90a", 64), Multiprocessor(131072, 64 * 1024, 2048, 0)),  # MI250
    "hip:gfx942": (GPUTarget("hip", "gfx942", 64), Multiprocessor(131072, 64 * 1024, 2048, 0)),  # MI300
}
TABLE_TYPES = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
_NUMBERS = dict.fromkeys(
    ("constant", "floor", "lift", "scale", "softcap", "keep", "epsilon", "loss_weight"), "fp32"
)
_SIZES = {"row_stride", "gradient_stride", "width", "kept", "size", "groups"}
_IDS = {"ids", "labels", "kept_ids", "places", "best"}


def programs(kept: int, order: int, dtype: str, vocabulary: int) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Each program with its compile-time settings, and the dtype of what it takes in as `table`, or writes last."""
    tile = max(SMALLEST_TILE, power_of_two(kept))
    form = form_settings(tile, order) | {"P": 16, "GAP": False}
    yield token_form_program.gram_program, gram_settings(tile) | {"column_stride": 1}, TABLE_TYPES[dtype]
    yield token_form_program.form_program, form, "*fp32"
    position = position_settings(kept)
    frame = position | {"GROUP": 64, "GROUPED": True}
    yield position_program.frame_program, frame, "*fp32"
    yield position_program.factor_program, position | {"GRADIENT": True}, "*fp32"
    row = row_settings(vocabulary)
    softmax = row | {"GROUP": 64, "MAXIMA": True}
    yield row_softmax_program.softmax_program, softmax, "*fp32"
    gradient = row | {"K": power_of_two(kept), "CAPPED": False}
    yield row_softmax_program.gradient_program, gradient, TABLE_TYPES[dtype]


def compiled(program: Any, settings: dict[str, Any], dtype: str, target: GPUTarget) -> Any:
    """The program for a target, with pointers and sizes that are multiples of 16 as they usually are."""
    constants = {name: value for name, value in settings.items() if name in program.arg_names}
    types = {}
    for name in program.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in _SIZES:
            types[name] = "i32"
        elif name in _IDS and not (name == "labels" and "labels2" in program.arg_names):
            types[name] = "*i64"
        elif (
            name == "scale" and "size" not in program.arg_names
        ):  # of each token; else a factor on the logits
            types[name] = "*fp32"
        else:
            types[name] = _NUMBERS.get(name, dtype if name in ("table", "gradients") else "*fp32")
    aligned = [(place,) for place, kind in enumerate(types.values()) if kind.startswith("*") or kind == "i32"]
    source = ASTSource(
        program,
        types,
        {(program.arg_names.index(name),): value for name, value in constants.items()},
        {place: [["tt.divisibility", 16]] for place in aligned},
    )
    return triton.compile(source, target=target, options={"num_warps": settings["num_warps"]})


def resources(kernel: Any) -> dict[str, int]:
    """Registers a thread, spilled bytes a thread, shared bytes a program."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers, spilled = (
            int(re.findall(rf"\.{name}:\s+(\d+)", text)[0]) for name in ("vgpr_count", "vgpr_spill_count")
        )
        return {"registers": registers, "spilled": 4 * spilled, "shared": kernel.metadata.shared}
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump tells no resources: {text}")
    registers, stack, local = (int(number) for number in found.groups())
    return {"registers": registers, "spilled": stack + local, "shared": kernel.metadata.shared}


def occupancy(used: dict[str, int], threads: int, has: Multiprocessor) -> int:
    """How many programs a multiprocessor holds."""
    registers = -(-used["registers"] // 8) * 8 * threads
    shared = max(1, used["shared"] + has.reserved)
    return min(has.registers // registers, has.shared // shared, has.threads // threads)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = ["cuda:80", "cuda:90", "hip:gfx942"]
    parser.add_argument(
        "--target", choices=TARGETS, nargs="+", default=usual, help=f"default {' '.join(usual)}"
    )
    parser.add_argument("--kept", type=positive, nargs="+", default=[64], help="kept tokens; default 64")
    parser.add_argument("--order", type=positive, nargs="+", default=[8], help="Lanczos steps; default 8")
    parser.add_argument("--dtype", choices=TABLE_TYPES, default="bfloat16", help="default bfloat16")
    parser.add_argument("--vocabulary", type=positive, default=131072, help="default 131072")
    parser.add_argument("--json", type=new_file, help="write the figures there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Compile, print, write."""
    options = parse(arguments)
    about = {"triton": triton.__version__, "dtype": options.dtype, "vocabulary": options.vocabulary}
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    rows: list[dict[str, Any]] = []
    for name in options.target:
        target, multiprocessor = TARGETS[name]
        for kept in options.kept:
            for order in options.order:
                for program, settings, dtype in programs(kept, order, options.dtype, options.vocabulary):
                    progress(f"{name}: {program.__name__}, {kept} kept, order {order}")
                    used = resources(compiled(program, settings, dtype, target))
                    threads = settings["num_warps"] * target.warp_size
                    fit = occupancy(used, threads, multiprocessor)
                    case = {"target": name, "program": program.__name__, "kept": kept, "order": order}
                    rows.append(case | used | {"programs": fit, "threads": fit * threads})
    progress("")
    header = list(rows[0])
    print(table(header, [[str(row[key]) for key in header] for row in rows]))
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
