"""What is known of how the package was installed: in a checkout, and as a wheel lays it out."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from packaging.requirements import Requirement

from helpers.scripts import ROOT
from mce_llm.running.installation import (
    InstallationError,
    install_hint,
    installed_version,
    installed_versions,
    is_checkout,
    named_file,
    shipped_file,
    shipped_folder,
)


def test_versions():
    assert installed_version("no-such-package") is None
    assert torch.__version__.startswith(installed_version("torch"))
    assert installed_versions(["no-such-package", "torch"]) == {
        "python": platform.python_version(),
        "no-such-package": "not installed",
        "torch": installed_version("torch"),
    }


def test_scripts_of_a_checkout(monkeypatch, tmp_path):
    assert is_checkout()
    assert shipped_folder() == ROOT
    for name in ("recipes/finetune.py", "recipes/accelerate/cpu.yaml", "eval/gsm8k.py", "vision/pretrain.py"):
        assert shipped_file(name) == ROOT / name
    with pytest.raises(InstallationError, match=r"recipes/none\.py is missing; reinstall mce-llm"):
        shipped_file("recipes/none.py")
    monkeypatch.chdir(ROOT)
    assert named_file("recipes/finetune.py") == "recipes/finetune.py"
    assert install_hint("eval") == "pip install -e '.[eval]'"
    monkeypatch.chdir(tmp_path)
    assert named_file("recipes/finetune.py") == str(ROOT / "recipes/finetune.py")
    assert install_hint("eval") == f"pip install -e '{ROOT}[eval]'"


ASKED = """
from mce_llm.running.installation import *
from mce_llm.running.installation import is_checkout
print(is_checkout())
for extra in ("eval", "trl", "no-such-extra"):
    print(install_hint(extra))
try:
    print(shipped_file("recipes/finetune.py"))
    print(named_file("eval/gsm8k.py"))
except InstallationError as error:
    print(error)
"""


@pytest.fixture
def wheel(tmp_path):
    """The package as a wheel lays it out, without a checkout around it; the scripts are in mce_llm/shipped/."""
    package = tmp_path / "site" / "mce_llm"
    shutil.copytree(ROOT / "mce_llm", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("recipes", "eval", "vision"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, package / "shipped" / name, ignore=ignored)

    def ask():
        done = subprocess.run(
            [sys.executable, "-c", ASKED],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(package.parent)},
        )
        return done.stdout.splitlines()

    return package, ask


def test_scripts_of_a_wheel(wheel):
    package, ask = wheel
    checkout, evaluation, trl, unknown, script, named = ask()
    assert checkout == "False"
    # The package cannot be installed again from where it came: what the extra asks for is named.
    for hint, name in ((evaluation, "math-verify"), (trl, "trl")):
        command, quoted = hint.split(" '", 1)
        assert command == "pip install"
        assert Requirement(quoted.rstrip("'")).name == name
        assert Requirement(quoted.rstrip("'")).specifier
    assert unknown == "pip install 'mce-llm[no-such-extra]'"
    assert script == str(package / "shipped" / "recipes" / "finetune.py")
    assert named == str(package / "shipped" / "eval" / "gsm8k.py")
    shutil.rmtree(package / "shipped")
    assert (
        ask()[-1] == f"the recipes that belong to mce-llm are not in {package / 'shipped'}; reinstall mce-llm"
    )
