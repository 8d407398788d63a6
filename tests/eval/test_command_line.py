"""The evaluation's command line: a settings file, overrides, what is refused, and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers.scripts import ROOT
from mce_llm.eval import tasks
from mce_llm.eval.gsm8k import main

SCRIPT = ROOT / "eval" / "gsm8k.py"


@pytest.fixture
def settings_file(tmp_path, model_directory, questions):
    """Write a YAML file for an evaluation into tmp_path/out, and return its path."""

    def write(**changed):
        settings = {
            "model": str(model_directory),
            "data": str(questions),
            "output": str(tmp_path / "out"),
            "prompt": "plain",
            "max_new_tokens": 12,
            "batch_size": 4,
        }
        path = tmp_path / "evaluation.yaml"
        path.write_text(yaml.safe_dump({**settings, **changed}), encoding="utf-8")
        return str(path)

    return write


def lines(path):
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_a_file_and_an_override(tmp_path, settings_file):
    path = settings_file(limit=5, seed=3)
    assert main(["--config", path, "--limit", "2", "--max_new_tokens=7"]) == 0
    assert len(lines(tmp_path / "out" / "items.jsonl")) == 2
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["settings"]
    assert (settings["limit"], settings["max_new_tokens"], settings["seed"]) == (2, 7, 3)
    assert settings["prompt"] == "plain"


def test_null_in_a_file_is_none(tmp_path, settings_file):
    assert main(["--config", settings_file(limit=None)]) == 0
    assert len(lines(tmp_path / "out" / "items.jsonl")) == 11


@pytest.mark.parametrize(
    ("changed", "words", "message"),
    [
        ({"max_new_token": 5}, [], "unknown setting 'max_new_token' (did you mean 'max_new_tokens'?)"),
        ({}, ["--batchsize", "2"], "unknown setting 'batchsize' (did you mean 'batch_size'?)"),
        ({"data": None}, [], "data cannot be null; leave it out to get its default"),
        ({"limit": "many"}, [], "argument --limit: invalid int value: 'many'"),
        ({"data": ["a", "b"]}, [], "data takes one value, got a list of 2"),
        ({"batch_size": 0}, [], "batch_size must be at least 1, got 0"),
        ({}, ["--batch_size=0"], "batch_size must be at least 1, got 0"),
        ({}, ["out"], "unexpected word 'out' on the command line"),
    ],
)
def test_what_a_file_or_an_override_cannot_say(changed, words, message, tmp_path, settings_file, capsys):
    path = settings_file(**changed)
    assert main([*words, "--config", path]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold a mapping of settings, name: value"),
        ("- model\n", "must hold a mapping of settings, name: value"),
        ("model: [\n", "is not YAML"),
        (None, "no configuration file"),
    ],
)
def test_files_that_cannot_be_read(content, message, tmp_path, capsys):
    path = tmp_path / "evaluation.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["--config", str(path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_and_the_same_command_goes_on(
    number, tmp_path, settings_file, capsys, monkeypatch
):
    words = ["--config", settings_file(batch_size=3)]
    judge, judged = tasks.Task.judge, []

    def judge_and_signal(self, row, answer, **options):
        if len(judged) == 4:
            os.kill(os.getpid(), number)
        judged.append(answer.index)
        return judge(self, row, answer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tasks.Task, "judge", judge_and_signal)
        assert main(words) == 143
    assert (
        f"stopped by {number.name}; the run is not finished, and the same command goes on from the 4 answers that are "
        f"kept in {tmp_path / 'out'}" in capsys.readouterr().err
    )
    assert not (tmp_path / "out" / "summary.json").exists()
    assert main(words) == 0
    assert "kept from before" in capsys.readouterr().out
    assert [item["index"] for item in lines(tmp_path / "out" / "items.jsonl")] == list(range(11))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["continued"] == 4


@pytest.mark.slow
def test_a_script_that_a_scheduler_stops(tmp_path, settings_file, questions):
    """SIGTERM to the process of the script, while it answers; then the same command again."""
    many = tmp_path / "many.jsonl"
    many.write_text(questions.read_text() * 30)
    command = [sys.executable, str(SCRIPT), "--config", settings_file(data=str(many), batch_size=1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as launched:
        file, deadline = tmp_path / "out" / "items.rank0.jsonl", time.monotonic() + 240
        while not (file.exists() and file.read_bytes().count(b"\n") >= 2):
            assert launched.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        launched.send_signal(signal.SIGTERM)
        _, errors = launched.communicate(timeout=120)
    assert launched.returncode == 143, errors
    assert "stopped by SIGTERM; the run is not finished, and the same command goes on from the" in errors
    assert "Traceback" not in errors
    kept = len(lines(file))
    assert 2 <= kept < 330
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert len(lines(tmp_path / "out" / "items.jsonl")) == 330
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["continued"] == kept
