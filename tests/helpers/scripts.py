"""The scripts at the top of the repository, as modules: what they define can be called and replaced by a test."""

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


@cache
def load_script(path: str) -> ModuleType:
    """The module of a script such as "recipes/finetune.py"; the same one each time, its `__main__` part not run."""
    name = "script_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def launch_processes(script: Path, arguments: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    """Run a script with several processes over gloo, as `accelerate launch` starts them, and wait for its end."""
    # --multi_gpu is what makes accelerate start several processes at all, without a GPU too (over gloo); with
    # --cpu it ignores --num_processes.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += [f"--num_processes={processes}", "--num_machines=1", "--mixed_precision=no"]
    command += ["--dynamo_backend=no", "--main_process_port=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
