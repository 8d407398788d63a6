"""What an installed wheel can do where there is no checkout: everything that the README shows.

The wheel is built and installed into an environment of its own; other packages come from the tests' environment.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from helpers.recipes import save_tiny_model
from helpers.scripts import ROOT
from mce_llm.data import generate_problems, write_jsonl


class Installed:
    """An environment with the wheel in it, and an empty folder to work in."""

    def __init__(self, environment, folder):
        self.bin = environment / "bin"
        self.folder = folder

    def run(self, *words, code=0, timeout=1200):
        """`words` in the empty folder; mce-llm and python are those of the environment."""
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(
            [str(self.bin / words[0]), *map(str, words[1:])],
            cwd=self.folder,
            env={**own, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout if code == 0 else result.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    wheels, environment = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("environment")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    # Of a folder named in a .pth file no .pth is read, so the tests' own editable install stays out.
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return Installed(environment, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def small(installed):
    """A tiny model and made-up problems in the folder to work in."""
    rows = generate_problems(40, seed=0)
    write_jsonl(rows, installed.folder / "data.jsonl")
    save_tiny_model(installed.folder, rows)
    return installed


def test_the_package_is_the_installed_one(installed):
    place = installed.run("python", "-c", "import mce_llm; print(mce_llm.__file__)").strip()
    assert Path(place).is_relative_to(installed.bin.parent)


def test_the_wheel_holds_one_package_and_no_leftovers(installed):
    code = "from importlib.metadata import files; print(*files('mce-llm'), sep='\\n')"
    names = installed.run("python", "-c", code).splitlines()
    tops = {name.split("/")[0] for name in names if not name.startswith("..")}
    assert {top.split("-")[0] for top in tops} == {"mce_llm"}
    assert "mce_llm/shipped/recipes/finetune.py" in names
    assert "mce_llm/py.typed" in names


def test_recipes_and_scripts_are_copied(installed):
    printed = installed.run("mce-llm", "copy", "--to", "mine").splitlines()
    mine = installed.folder / "mine"
    for name in (
        "recipes/finetune.py",
        "recipes/accelerate/zero3.yaml",
        "eval/gsm8k.py",
        "eval/likelihood.py",
        "vision/pretrain.py",
    ):
        assert (mine / name).read_bytes() == (ROOT / name).read_bytes()
        assert f"mine/{name}" in printed
    assert os.access(mine / "recipes" / "cluster" / "node.sh", os.X_OK) == os.access(
        ROOT / "recipes" / "cluster" / "node.sh", os.X_OK
    )
    assert "0 files written" in installed.run("mce-llm", "copy", "--to", "mine")
    (mine / "recipes" / "finetune.py").write_text("mine\n")
    assert "recipes/finetune.py for one" in installed.run("mce-llm", "copy", "--to", "mine", code=2)
    assert (mine / "recipes" / "finetune.py").read_text() == "mine\n"
    installed.run("mce-llm", "copy", "recipes/finetune.py", "--to", "mine", "--overwrite")
    assert (mine / "recipes" / "finetune.py").read_bytes() == (ROOT / "recipes/finetune.py").read_bytes()


@pytest.mark.slow
@pytest.mark.ci
def test_a_shipped_recipe_is_examined_launched_evaluated_and_compared(small):
    settings = [
        *("--model_name_or_path", "model", "--dataset", "data.jsonl", "--eval_dataset", "data.jsonl"),
        *("--max_steps", "2", "--overwrite", "true"),
    ]
    found = small.run("mce-llm", "validate", "quickstart_mce", "--json", *settings)
    assert json.loads(found)["trial_step"]
    for name in ("ce", "mce"):
        small.run(
            *("mce-llm", "finetune", f"quickstart_{name}", "--config_file", "cpu", "--num_processes", "1"),
            *(*settings, "--output_dir", name),
        )
        recipe = yaml.safe_load((small.folder / name / "recipe.yaml").read_text())
        assert recipe["max_steps"] == 2
        assert recipe["model_name_or_path"] == "model"
    small.run("mce-llm", "copy", "eval")
    for name in ("ce", "mce"):
        small.run(
            *(
                "python",
                "eval/gsm8k.py",
                "--model",
                name,
                "--output",
                f"{name}/gsm8k",
                "--data",
                "data.jsonl",
            ),
            *("--prompt", "plain", "--max_new_tokens", "4", "--limit", "6"),
        )
    assert "McNemar" in small.run("mce-llm", "compare", "ce/gsm8k", "mce/gsm8k")
    small.run("mce-llm", "report", "ce", "mce")
    assert (small.folder / "report" / "index.html").stat().st_size > 10_000


@pytest.mark.slow
def test_quickstart(installed):
    printed = installed.run("mce-llm", "quickstart", "--steps-scale", "0.005", timeout=1800)
    assert "CE + MCE" in printed
    assert (installed.folder / "runs" / "quickstart" / "quickstart.png").is_file()


def test_what_is_missing_is_installed_without_a_checkout(installed):
    code = "from mce_llm.running.installation import install_hint; print(install_hint('eval'))"
    hint = installed.run("python", "-c", code).strip()
    assert hint.startswith("pip install 'math-verify[antlr4")
    assert "-e" not in hint.split()
