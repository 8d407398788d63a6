"""The command that a finished run shows can be run as it stands."""

import json
import shlex
import subprocess
import sys

from helpers.recipes import words
from helpers.scripts import ROOT, load_script

main = load_script("recipes/finetune.py").main


def test_the_evaluation_command_runs(folder, settings, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    main(words(settings, eval_dataset=folder / "held_out.jsonl"))
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy on GSM8K: ")
    )
    command = shlex.split(line.removeprefix("accuracy on GSM8K: "))
    assert command[0] == "python"
    result = subprocess.run(
        [sys.executable, *command[1:], "--max_new_tokens", "4"], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    output = settings["output_dir"]
    summary = json.loads((output / "gsm8k" / "summary.json").read_text())
    assert summary["n"] == 10
