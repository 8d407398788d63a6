"""Parts of the GPU report: the losses beside those of others, with and without kernels, and in a training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from gpu_dry_run import SETTINGS, STOCK, WEIGHT_0, loss_of
from measuring import Measurement, compare
from report_parts import Clock, Setting, Skipped, problem
from torch import Tensor

from mce_llm.lm.kernels.launching import VARIABLE

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def _others(device: torch.device) -> dict[str, Call | str]:
    """Cross-entropy of others by name: a call, or why there is none here."""
    found: dict[str, Call | str] = {}
    torch_linear: Any = getattr(F, "linear_cross_entropy", None)
    options: Any = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    old = f"torch {torch.__version__} has none"
    found["torch"] = old if torch_linear is None else torch_linear
    found["torch, chunked"] = old
    if torch_linear is not None and options is not None:
        found["torch, chunked"] = lambda h, w, y: torch_linear(h, w, y, options=options())
    for name, package in (("Liger", "liger_kernel"), ("cut cross-entropy", "cut_cross_entropy")):
        if device.type != "cuda":
            found[name] = "it needs a GPU"
        elif find_spec(package) is None:
            found[name] = f"{package} is not installed"
        elif name == "Liger":
            liger = import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
            found[name] = lambda h, w, y, liger=liger: liger(w, h, y)  # type: ignore[misc]
        else:
            cut = import_module("cut_cross_entropy").linear_cross_entropy
            found[name] = lambda h, w, y, cut=cut: cut(h, w, y)  # type: ignore[misc]
    return found


def _backward(call: Call, inputs: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    return lambda: call(*inputs).backward()


def _value(call: Call, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """The loss, once its backward pass is through; no graph outlives a case that does not fit."""
    loss = call(*inputs)
    loss.backward()
    return float(loss.detach())


def _reset(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    inputs[0].grad = inputs[1].grad = None


def losses(setting: Setting, clock: Clock) -> dict[str, Any]:
    """Time and peak memory of forward and backward at three vocabularies, side by side in one run."""
    rows: list[dict[str, Any]] = []
    width = setting.size(4096, 32)
    vocabularies = (300, 900) if setting.quick else (128256, 32000, 262144)
    for vocabulary in clock.within(vocabularies):
        inputs = problem(setting.tokens, vocabulary, width, torch.bfloat16, setting.device)
        calls: dict[str, Call] = {STOCK: lambda h, w, y: loss_of(STOCK)(h, w, y, None)}
        for name, call in _others(setting.device).items():
            if isinstance(call, str):
                clock.skipped[f"{name}, V={vocabulary}"] = call
            else:
                calls[name] = call
        for name in SETTINGS:
            calls[name] = lambda h, w, y, name=name: loss_of(name)(h, w, y, None)  # type: ignore[misc]
        fitting: dict[str, Callable[[], None]] = {}
        values: dict[str, float] = {}
        for name, call in calls.items():
            for what in clock.within([f"{name}, V={vocabulary}"]):
                with clock.case(what):
                    values[name] = _value(call, inputs)
                    fitting[name] = _backward(call, inputs)
                _reset(inputs)
        if clock.left <= 0:
            clock.skipped[f"timing, V={vocabulary}"] = f"the {clock.seconds:.0f} s of the part were over"
            continue
        reset = lambda inputs=inputs: _reset(inputs)  # noqa: E731
        seen = compare(fitting, setting.device, setting.size(5, 1), reset)
        rows += [{"V": f"{vocabulary:,}", **_row(name, seen, values[name])} for name in fitting]
        del inputs, fitting, reset
    return {"rows": rows, "notes": {"positions": setting.tokens, "width": width, "dtype": "bfloat16"}}


def _row(name: str, seen: dict[str, Measurement], value: float) -> dict[str, Any]:
    """Figures of one case and its ratios to stock and to weight 0."""
    own, stock, plain = seen[name], seen.get(STOCK), seen.get(WEIGHT_0)
    peaks = own.peak_bytes, stock and stock.peak_bytes
    return {
        "case": name,
        "loss": value,
        "ms": own.median * 1e3,
        "against_stock": stock and own.median / stock.median,
        "against_weight_0": plain and own.median / plain.median,
        "peak_MiB": None if peaks[0] is None else round(peaks[0] / 2**20),
        "peak_against_stock": peaks[0] / peaks[1] if peaks[0] is not None and peaks[1] else None,
    }


@contextmanager
def _by_pytorch() -> Iterator[None]:
    """Our losses without their kernels."""
    with patch.dict(os.environ, {VARIABLE: "torch"}):
        yield


def kernels(setting: Setting, clock: Clock) -> dict[str, Any]:
    """The losses by our kernels and by PyTorch's operations: time, peak, and how far the results are apart."""
    if setting.device.type != "cuda":
        raise Skipped("they need a GPU")
    if find_spec("triton") is None:
        raise Skipped("triton is not installed")
    rows: list[dict[str, Any]] = []
    for vocabulary in clock.within((16384,) if setting.quick else (128256, 32000, 262144)):
        inputs = problem(setting.tokens, vocabulary, setting.size(4096, 256), torch.bfloat16, setting.device)
        for case in clock.within((WEIGHT_0, "token")):
            with clock.case(f"{case}, V={vocabulary}"):
                rows.append(
                    {"V": f"{vocabulary:,}", "case": case, **_with_and_without(case, inputs, setting)}
                )
            _reset(inputs)
    return {"rows": rows}


def _with_and_without(
    case: str, inputs: tuple[Tensor, Tensor, Tensor], setting: Setting
) -> dict[str, float | None]:
    """Ratios of a loss by kernels to the same without, and relative differences of the gradients."""

    def by_kernels() -> None:
        loss_of(case)(*inputs, None).backward()

    def by_pytorch() -> None:
        with _by_pytorch():
            loss_of(case)(*inputs, None).backward()

    gradients = []
    for call in (by_kernels, by_pytorch):
        _reset(inputs)
        call()
        gradients.append([tensor.grad for tensor in inputs[:2]])
    differences = [
        float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(*gradients, strict=True)
    ]
    del gradients
    calls = {"kernels": by_kernels, "pytorch": by_pytorch}
    seen = compare(calls, setting.device, setting.size(5, 1), lambda: _reset(inputs))
    ours, plain = seen["kernels"], seen["pytorch"]
    peak = ours.peak_bytes / plain.peak_bytes if ours.peak_bytes is not None and plain.peak_bytes else None
    return {
        "ms": ours.median * 1e3,
        "against_pytorch": ours.median / plain.median,
        "peak_against_pytorch": peak,
        "dH_apart": differences[0],
        "dW_apart": differences[1],
    }


def step(setting: Setting, clock: Clock) -> dict[str, Any]:
    """A training step of a 7B-shaped model with each loss, by `training_step.py` in a process of its own."""
    words = ["--device", setting.device.type, "--optimizer", "none"]
    if setting.quick:
        words += ["--shape", "2m", "--batch", "1", "--length", "8", "--repeats", "1", "--dtype", "float32"]
    else:
        words += ["--shape", "7b", "--batch", "4", "--length", "2048", "--repeats", "3"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "step.json"
        script = Path(__file__).with_name("training_step.py")
        command = [sys.executable, str(script), *words, "--json", str(file)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=max(clock.left, 1.0), check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Skipped(f"it did not end within {error.timeout:.0f} s") from None
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        found = json.loads(file.read_text())
    rows = [
        {
            "case": row["case"],
            "ms": row["seconds"] * 1e3,
            "against_stock": row.get("against_stock"),
            "against_liger": row.get("against_liger"),
            "peak_MiB": None if row["peak_bytes"] is None else round(row["peak_bytes"] / 2**20),
        }
        for row in found["rows"]
    ]
    return {"rows": rows, "notes": {"parameters": found["parameters"], "command": " ".join(words)}}
