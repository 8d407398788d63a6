"""Parts of the GPU report: what the GPU does, whether the losses are right on it, and where the host waits."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_dry_run import SETTINGS, dry_run, ours
from report_parts import Clock, Setting, Skipped, median_seconds, problem
from torch import Tensor

from mce_llm.lm import MatrixLossConfig, linear_matrix_cross_entropy
from mce_llm.lm.top_tokens import top_tokens

# Largest relative deviation of loss, dH and dW from float64 with the same inputs. Logits in bfloat16 are off by 2⁻⁹ of
# themselves before anything else; a wrong term or factor is off by far more than either.
_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
_CHECKED = {**SETTINGS, "token, full vocabulary": {"support": None, "order": 4}}
_CHECK_CHUNK = 128
_SYNC_WARNING = "synchronizing CUDA operation"


def rates(setting: Setting, clock: Clock) -> dict[str, Any]:
    """What the assumptions of the dry run are in truth, by the same names."""
    device, size = setting.device, setting.size(8192, 128)
    rows: list[dict[str, Any]] = []

    def add(name: str, unit: str, value: Callable[[], float]) -> None:
        for what in clock.within([name]):
            with clock.case(what):
                rows.append({"what": what, "unit": unit, "value": value()})

    def product(dtype: torch.dtype) -> float:
        square = torch.randn(size, size, device=device).to(dtype)
        return 2 * size**3 / median_seconds(lambda: square @ square, device) / 1e12

    def copy() -> float:
        big = torch.empty(setting.size(2**29, 2**18), device=device)
        moved = 2 * big.numel() * big.element_size()
        return moved / median_seconds(lambda: big.add_(1), device) / 1e12

    add("bandwidth", "TB/s", copy)
    for name in ("bfloat16", "float32", "float64"):
        add(name, "TFLOP/s", lambda name=name: product(getattr(torch, name)))  # type: ignore[misc]
    tiny, many = torch.zeros(8, device=device), setting.size(2000, 50)

    def launches() -> None:
        for _ in range(many):
            tiny.add_(1)

    add("launch", "µs", lambda: 1e6 * median_seconds(launches, device) / many)
    for count in (1, setting.size(2048, 16), setting.size(8192, 64)):
        small = torch.diag_embed(torch.rand(count, 8, device=device))
        add(
            f"eigh of {count} 8×8",
            "µs",
            lambda small=small: 1e6 * median_seconds(lambda: torch.linalg.eigh(small), device),  # type: ignore[misc]
        )
    frames = torch.randn(setting.size(512, 4), 65, setting.size(4096, 64), device=device)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        cast = frames.to(dtype)
        add(
            f"Gram matrices of {len(frames)} frames, {name}",
            "ms",
            lambda cast=cast: 1e3 * median_seconds(lambda: torch.bmm(cast, cast.mT), device),  # type: ignore[misc]
        )
    for vocabulary in _vocabularies(setting):
        scores = torch.rand(max(1, setting.size(2**26, 2**17) // vocabulary), vocabulary, device=device)
        for name, call in (("topk", scores.topk), ("top_tokens", lambda k, s=scores: top_tokens(s, k))):
            add(
                f"{name} of 64 of {vocabulary}, {len(scores)} rows",
                "ms",
                lambda call=call: 1e3 * median_seconds(lambda: call(64), device),  # type: ignore[misc]
            )
    known = {row["what"]: row["value"] for row in rows}
    names = [name for name in ("bandwidth", "bfloat16", "float32", "float64", "launch") if name in known]
    options = " ".join(f"--{name} {known[name]:.3g}" for name in names)
    return {"rows": rows, "notes": {"for the dry run": f"python benchmarks/gpu_dry_run.py {options}"}}


def _vocabularies(setting: Setting) -> tuple[int, ...]:
    return (512, 16384) if setting.quick else (32000, 128256, 262144)


Results = tuple[Tensor, Tensor, Tensor]


def _results(settings: dict[str, Any], inputs: Results, device: torch.device, dtype: torch.dtype) -> Results:
    """Loss, dH and dW on a device in a dtype, of inputs in that dtype or another."""
    hidden, weight = (tensor.detach().to(device, dtype).requires_grad_() for tensor in inputs[:2])
    config = MatrixLossConfig(**settings)
    labels = inputs[2].to(device)
    loss = linear_matrix_cross_entropy(hidden, weight, labels, config, chunk_size=_CHECK_CHUNK).loss
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.detach(), hidden.grad, weight.grad


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def correctness(setting: Setting, clock: Clock) -> dict[str, Any]:
    """Deviations from float64 on the CPU, whether two runs are equal bit for bit, and deterministic mode."""
    device = setting.device
    rows: list[dict[str, Any]] = []
    for dtype, limit in _LIMITS.items():
        name = str(dtype).removeprefix("torch.")
        hidden, weight, labels = problem(
            setting.size(500, 40), setting.size(3000, 300), setting.size(256, 32), dtype, torch.device("cpu")
        )
        labels[::7] = -100
        inputs = (hidden, weight, labels)
        for case in clock.within(_CHECKED):
            with clock.case(f"{case}, {name}"):
                expected = _results(_CHECKED[case], inputs, torch.device("cpu"), torch.float64)
                found = _results(_CHECKED[case], inputs, device, dtype)
                again = _results(_CHECKED[case], inputs, device, dtype)
                errors = [
                    float((a.double().cpu() - b).norm() / b.norm())
                    for a, b in zip(found, expected, strict=True)
                ]
                row: dict[str, Any] = {"case": case, "dtype": name}
                row |= dict(zip(("loss", "dH", "dW"), errors, strict=True))
                row["repeatable"] = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
                row["deterministic_mode"] = _runs_deterministically(_CHECKED[case], inputs, device, dtype)
                rows.append(row)
                if not max(errors) <= limit:
                    raise AssertionError(f"deviations {errors} from float64, at most {limit} was expected")
    return {"rows": rows}


def _runs_deterministically(
    settings: dict[str, Any], inputs: Results, device: torch.device, dtype: torch.dtype
) -> str:
    """What became of a run in deterministic mode: that it runs, or the first line of what PyTorch says."""
    try:
        with _deterministic():
            _results(settings, inputs, device, dtype)
    except RuntimeError as error:
        return str(error).splitlines()[0][:60]
    return "runs"


def host_waits(setting: Setting, clock: Clock) -> dict[str, Any]:
    """Where PyTorch sees the host wait in a micro-step, beside how often the dry run counts it."""
    if setting.device.type != "cuda":
        raise Skipped("PyTorch sees waits for a CUDA device alone")
    tokens, vocabulary, width = setting.size(2048, 256), setting.size(16384, 512), setting.size(512, 64)
    rows: list[dict[str, Any]] = []
    for case in clock.within(SETTINGS):
        with clock.case(case):
            loss = ours(SETTINGS[case])
            inputs = problem(tokens, vocabulary, width, torch.bfloat16, setting.device)
            loss(*inputs, tokens // 4).backward()  # what is kept from one call to the next is made here
            seen = _seen_waits(lambda loss=loss, inputs=inputs: loss(*inputs, tokens // 4).backward())  # type: ignore[misc]
            counted = len(dry_run(loss, tokens, vocabulary, width, torch.bfloat16, tokens // 4).waits)
            places = ", ".join(f"{place} × {count}" for place, count in seen.items())
            rows.append({"case": case, "where": places, "seen": seen.total(), "dry_run": counted})
    return {"rows": rows, "notes": {"chunks": 4}}


def _seen_waits(call: Callable[[], object]) -> Counter[str]:
    """file:line → how often PyTorch warned of a wait there."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if _SYNC_WARNING in str(warning.message)
    )
