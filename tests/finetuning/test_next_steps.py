"""The command that a finished run shows can be run as it stands."""

import json
import shlex
import subprocess
import sys

import pytest

from helpers.recipes import words
from helpers.scripts import ROOT, load_script
from mce_llm.data import write_jsonl

main = load_script("recipes/finetune.py").main


@pytest.mark.parametrize("columns", [None, "{question: asked, response: told}"])
def test_the_evaluation_command_runs(columns, folder, settings, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    given = {"eval_dataset": folder / "held_out.jsonl"}
    if columns is not None:
        for name in ("data", "held_out"):
            rows = map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
            write_jsonl(
                [{"asked": row["question"], "told": row["answer"]} for row in rows],
                tmp_path / f"{name}.jsonl",
            )
        given = {
            "dataset": tmp_path / "data.jsonl",
            "eval_dataset": tmp_path / "held_out.jsonl",
            "columns": columns,
        }
    main(words(settings, **given))
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
