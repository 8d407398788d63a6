"""Ways to run the fine-tuning recipe, and to read what it left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

from mce_llm.recipes import finetune

RECIPES = Path(finetune.__file__).resolve().parent


def words(settings, **changed):
    merged = {**settings, **changed}
    return [word for name, value in merged.items() if value is not None for word in (f"--{name}", str(value))]


def logged(output, name):
    history = json.loads(Path(output, "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def run_script(arguments, launcher=(), script=RECIPES / "finetune.py", timeout=300, **environment):
    """`python [launcher] recipes/finetune.py arguments` in a process of its own."""
    return subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        timeout=timeout,
        check=False,
    )
