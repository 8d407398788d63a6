"""Two runs into one folder: refused where both are at work, and one after the other in one process."""

import os
import subprocess
import sys
import threading

import pytest
from safetensors.torch import load_file

from helpers.recipes import RECIPES, logged, words
from helpers.scripts import load_script

finetune = load_script("recipes/finetune.py")


def test_two_runs_at_once(settings, tmp_path, capsys):
    """A killed one holds nothing, and what it left can be gone on from."""
    output = settings["output_dir"]
    endless = words(settings, max_steps=1_000_000, save_strategy="steps", save_steps=2, save_total_limit=1)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(RECIPES / "finetune.py"), *endless],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process:
        try:
            for line in process.stdout:
                if line.startswith("batch: "):  # what comes next is training
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()
            for more in ({}, {"overwrite": "true", "resume": "false"}):
                assert finetune.run(words(settings, **more)) == 2
                said = capsys.readouterr().err
                assert said.startswith(
                    f"error: another run is writing to {output} at this moment (process {process.pid} on"
                )
        finally:
            process.kill()
            process.wait()
    assert finetune.run(words(settings, overwrite="true", resume="false")) == 0
    assert (output / "model.safetensors").exists()
    assert not (output / "_LOCK").exists()


def test_one_after_the_other_in_one_process(settings, monkeypatch, capsys):
    """As in a notebook, where an interrupted run leaves its TensorBoard thread behind."""
    settings |= {"report_to": "tensorboard", "save_strategy": "steps", "save_steps": 1}
    step = finetune.MatrixTrainer.training_step
    taken = []

    def interrupted(*given, **named):
        taken.append(1)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return step(*given, **named)

    before = set(threading.enumerate())
    monkeypatch.setattr(finetune.MatrixTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.main(words(settings))
    assert set(threading.enumerate()) - before
    output = settings["output_dir"]
    assert (output / "_LOCK").exists()
    for _ in range(2):
        finetune.main(words(settings, overwrite="true", resume="false"))
        assert len(logged(output, "ce_loss")) == 2
        assert not (output / "_LOCK").exists()
        assert load_file(output / "model.safetensors")
    assert "removing" in capsys.readouterr().out
