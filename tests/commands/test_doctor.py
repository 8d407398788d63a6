"""What the doctor finds, on this installation and on broken ones."""

import os
import subprocess
import sys

import pytest
from rich.console import Console

from mce_llm.commands import doctor
from mce_llm.commands.doctor import Finding, print_findings, torch_pair
from mce_llm.running.installation import install_hint


@pytest.fixture
def broken_package(tmp_path, monkeypatch):
    """Put a package that cannot be imported before the real one, for the programs that the doctor runs."""

    def put(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


def test_torchvision_of_another_torch(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy", "torch==2.5.1"])
    finding = torch_pair("2.15.0", "0.20.1")
    assert finding.level == "error"
    assert "torch 2.15.0 + torchvision 0.20.1, which fits torch==2.5.1" in finding.found
    assert "torch torchvision" in finding.remedy


def test_torchvision_of_another_build(monkeypatch, broken_package):
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch==2.15.0"])
    broken_package("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    finding = torch_pair("2.15.0+cpu", "0.29.2")
    assert finding.level == "error"
    assert "operator torchvision::nms does not exist" in finding.found


def test_without_torchvision():
    assert torch_pair("2.15.0", None).level == "ok"
    assert torch_pair(None, None).level == "error"


def test_a_trainer_that_does_not_import(broken_package):
    broken_package("transformers", "raise ImportError('no such operator')")
    (finding,) = doctor._trainer_imports()
    assert (finding.level, finding.found) == ("error", "ImportError: no such operator")


def test_missing_and_old_packages(monkeypatch):
    versions = {"torch": "2.1.0", "peft": None}
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=2.6", "peft>=0.17", 'ruff; extra == "dev"'])
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    old, missing = doctor._required_packages()
    assert old == Finding("error", "torch", "2.1.0, needs >=2.6", "pip install 'torch>=2.6'")
    assert missing == Finding("error", "peft", "missing", "pip install 'peft>=0.17'")


def test_optional_packages_are_notes(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    findings = doctor._optional_packages()
    assert {finding.level for finding in findings} == {"note"}
    remedies = {finding.subject: finding.remedy for finding in findings}
    assert remedies["deepspeed"] == install_hint("deepspeed")
    assert remedies["wandb"] == "pip install wandb"


def test_report(capsys):
    findings = [Finding("ok", "python", "3.12"), Finding("error", "torch", "missing", "install it")]
    print_findings(findings, Console(width=100))
    text = capsys.readouterr().out
    assert "install it" in text
    assert "1 problem to mend" in text


@pytest.mark.slow
def test_command_on_this_installation():
    result = subprocess.run(
        [sys.executable, "-m", "mce_llm", "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "everything needed is in order" in result.stdout
    for subject in ("python", "torch with torchvision", "transformers.Trainer", "accelerator", "deepspeed"):
        assert subject in result.stdout
