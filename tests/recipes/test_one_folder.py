"""Two runs into one folder: refused where both are at work, and one after the other in one process."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from safetensors.torch import load_file

from helpers.recipes import RECIPES, logged, run_script, words
from helpers.scripts import load_script
from helpers.waiting import wait_until

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


LAUNCH = ("-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file")
TWO = (*LAUNCH, str(RECIPES / "accelerate" / "cpu.yaml"), "--num_processes", "2")


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("first", "second"), [((), TWO), (TWO, TWO), (TWO, ())], ids=["1, 2", "2, 2", "2, 1"]
)
def test_a_double_start_of_several_processes(settings, tmp_path, first, second):
    """Also of a run that goes on; the record and the checkpoint stay as they are, and the first run trains on."""
    output = settings["output_dir"]
    settings |= {"save_strategy": "steps", "save_steps": 2, "total_batch_size": 8}
    assert run_script(words(settings), first).returncode == 0
    for name in ("model.safetensors", "train_results.json"):
        (output / name).unlink()  # as an interruption would have left it
    endless = words(settings, max_steps=1_000_000, save_strategy="no")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *first, str(RECIPES / "finetune.py"), *endless],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            for line in process.stdout:
                if line.startswith("from step 3 on: max_steps"):  # what comes next is training
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()
            wait_until(lambda: "1000000" in (output / "recipe.yaml").read_text(), process)
            kept = [output / "recipe.yaml", output / "README.md", *(output / "checkpoint-2").iterdir()]
            held = [path.read_bytes() for path in kept]
            refused = run_script(words(settings, learning_rate=0.5), second)
            assert refused.returncode == (1 if second else 2)  # a launcher makes 1 of 2
            assert refused.stderr.count("error: another run is writing to") == 1
            assert [path.read_bytes() for path in kept] == held
            assert process.poll() is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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
