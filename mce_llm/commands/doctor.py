"""What `mce-llm doctor` looks at: versions, devices, packages that do not fit together, and what to do about each.

Every check reads the installed distributions or runs a short program of its own, so that a broken package is a
finding and not a crash.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mce_llm.running.installation import DISTRIBUTION, install_hint, installed_version

Level = Literal["ok", "note", "error"]

# What each optional package is for, and the extra of this package that brings it, where one does.
OPTIONAL = {
    "deepspeed": ("ZeRO sharding over several GPUs", "deepspeed"),
    "bitsandbytes": ("4-bit and 8-bit base weights, 8-bit optimizers", "qlora"),
    "sentencepiece": ("models that bring tokenizer.model alone", None),
    "trl": ("MatrixSFTTrainer, for scripts that use TRL", "trl"),
    "math-verify": ("answers of MATH that need algebra to compare", "eval"),
    "lm_eval": ("tasks of EleutherAI's evaluation harness", "lm-eval"),
    "vllm": ("evaluation many times as fast on GPUs (--backend vllm)", None),
    "wandb": ("logging to Weights & Biases (report_to: wandb)", None),
}
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "error": "[red]error[/]"}
_LEAST_FREE_GIB = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: ok, note (works, but say so) or error (will fail).
        subject: What was looked at.
        found: What was found.
        remedy: What to do; empty where nothing is to be done.
    """

    level: Level
    subject: str
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Run every check; the order is that of the report."""
    checks: list[Callable[[], list[Finding]]] = [
        _python,
        _required_packages,
        lambda: [torch_pair(installed_version("torch"), installed_version("torchvision"))],
        _torch_works,
        _trainer_imports,
        _device,
        _optional_packages,
        _disk,
    ]
    return [finding for check in checks for finding in check()]


def print_findings(findings: list[Finding], console: Console) -> None:
    """A table, and one closing line."""
    table = Table(title="mce-llm doctor", show_lines=False)
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(
            _MARKS[finding.level], *(Text(text) for text in (finding.subject, finding.found, finding.remedy))
        )
    console.print(table)
    errors = sum(finding.level == "error" for finding in findings)
    console.print(
        f"{errors} problem{'s' * (errors != 1)} to mend" if errors else "everything needed is in order"
    )


def torch_pair(torch_version: str | None, vision_version: str | None) -> Finding:
    """Whether torch and torchvision were built for each other.

    torchvision names the torch versions that it fits; and with a right number but another build (a CPU-only torch
    beside a CUDA torchvision) its operators do not load, which breaks `transformers.Trainer` too.
    """
    subject = "torch with torchvision"
    remedy = "pip install --force-reinstall torch torchvision (together, from one index)"
    if torch_version is None:
        return Finding("error", subject, "torch is not installed", "pip install torch")
    if vision_version is None:
        return Finding(
            "ok", subject, f"torch {torch_version}; no torchvision, none needed for language models"
        )
    found = f"torch {torch_version} + torchvision {vision_version}"
    for requirement in map(Requirement, requires("torchvision") or []):
        if requirement.name == "torch" and Version(torch_version) not in requirement.specifier:
            return Finding("error", subject, f"{found}, which fits torch{requirement.specifier}", remedy)
    broken = _last_error("import torchvision")
    if broken is not None:
        return Finding("error", subject, f"{found}: {broken}", remedy)
    return Finding("ok", subject, found)


def _python() -> list[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < (3, 11):  # noqa: UP036 - a copied tree may be run by any interpreter
        return [Finding("error", "python", found, "use Python 3.11 or later")]
    return [Finding("ok", "python", found)]


def _required_packages() -> list[Finding]:
    try:
        needed = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        return [Finding("error", DISTRIBUTION, "not installed", "pip install -e . in the repository")]
    findings = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = installed_version(requirement.name)
        wanted = str(requirement.specifier)
        remedy = f"pip install '{requirement.name}{wanted}'"
        if found is None:
            findings.append(Finding("error", requirement.name, "missing", remedy))
        elif Version(found) not in requirement.specifier:
            findings.append(Finding("error", requirement.name, f"{found}, needs {wanted}", remedy))
        else:
            findings.append(Finding("ok", requirement.name, found))
    return findings


def _torch_works() -> list[Finding]:
    broken = _last_error("import torch; torch.linalg.eigh(torch.eye(3)); import torch.distributed")
    if broken is not None:
        return [Finding("error", "torch runs", broken, "reinstall torch for this platform")]
    return []


def _trainer_imports() -> list[Finding]:
    broken = _last_error("from transformers import Trainer")
    if broken is not None:
        remedy = "mend torch with torchvision above, or pip uninstall torchvision"
        return [Finding("error", "transformers.Trainer", broken, remedy)]
    return [Finding("ok", "transformers.Trainer", "imports")]


def _device() -> list[Finding]:
    code = (
        "import torch; n = torch.cuda.device_count(); "
        "print('; '.join(f'{torch.cuda.get_device_name(i)}, '"
        "f'{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB, '"
        "f'bfloat16 {torch.cuda.is_bf16_supported()}' for i in range(n)))"
    )
    result = _run(code)
    names = result.stdout.strip()
    if names:
        return [Finding("ok", "accelerator", names)]
    found = f"none; {os.cpu_count()} CPU cores"
    if shutil.which("nvidia-smi"):
        remedy = "an NVIDIA driver is here, but this torch does not see it: install the CUDA build of torch"
        return [Finding("error", "accelerator", found, remedy)]
    return [Finding("note", "accelerator", found, "the quickstart runs; a 7B model needs GPUs")]


def _optional_packages() -> list[Finding]:
    findings = []
    for name, (purpose, extra) in OPTIONAL.items():
        found = installed_version(name)
        if found is None:
            remedy = f"pip install {name}" if extra is None else install_hint(extra)
            findings.append(Finding("note", name, f"not installed: {purpose}", remedy))
        else:
            findings.append(Finding("ok", name, f"{found}: {purpose}"))
    return findings


def _disk() -> list[Finding]:
    free = shutil.disk_usage(".").free / 2**30
    if free < _LEAST_FREE_GIB:
        remedy = "checkpoints of a 7B model take 14 GiB each, with optimizer states 80 GiB and more"
        return [Finding("note", "free disk space here", f"{free:.1f} GiB", remedy)]
    return [Finding("ok", "free disk space here", f"{free:.0f} GiB")]


def _run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


def _last_error(code: str) -> str | None:
    """The last line that a program died with, or None if it ran."""
    try:
        result = _run(code)
    except subprocess.TimeoutExpired:
        return "did not finish within three minutes"
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {result.returncode}"
