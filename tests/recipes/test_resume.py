"""A run that is interrupted and started again ends where one without interruption ends, to the last bit."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from helpers.recipes import RECIPES, logged, run_script, words
from helpers.scripts import load_script
from helpers.waiting import HANG, wait_until
from mce_llm.lm import MatrixTrainer
from mce_llm.lm.training.manifest import problem_of, read_manifest, vouch, write_manifest

finetune = load_script("recipes/finetune.py")
main, run = finetune.main, finetune.run

# The settings, and the micro-step that is interrupted: after optimizer step 9, in an epoch after the first.
EVERY_KIND = {
    "all weights": ({}, 10),
    "adapters with dropout": ({"lora_r": 2, "lora_dropout": 0.2}, 10),
    "DoRA and a whole head": (
        {"lora_r": 2, "lora_dropout": 0.2, "use_dora": "true", "lora_modules_to_save": "lm_head"},
        10,
    ),
    "packed rows": ({"packing": "true"}, 10),
    "between micro-batches": ({"total_batch_size": 8}, 16),
}


def weights(output):
    (path,) = output.glob("*.safetensors")
    return load_file(path)


@pytest.fixture
def interrupt(monkeypatch):
    """Make Ctrl-C happen in a micro-step, the first being 0; None takes it back. Counts in `interrupt.micro_steps`."""
    own_step = MatrixTrainer.training_step

    def training_step(self, *args, **kwargs):
        if interrupt.micro_steps == interrupt.at:
            raise KeyboardInterrupt
        interrupt.micro_steps += 1
        return own_step(self, *args, **kwargs)

    def interrupt(at):
        interrupt.at, interrupt.micro_steps = at, 0

    interrupt(None)
    monkeypatch.setattr(MatrixTrainer, "training_step", training_step)
    return interrupt


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_interrupted_in_a_later_epoch(settings, tmp_path, interrupt, capsys, kind):
    changed, micro_step = EVERY_KIND[kind]
    settings |= {"limit": 20, "lr_scheduler_type": "cosine", "warmup_steps": 2, **changed}
    settings |= {"max_steps": 12, "save_strategy": "steps", "save_steps": 3}
    main(words(settings, output_dir=tmp_path / "whole"))
    interrupt(micro_step)
    assert run(words(settings)) == 130
    output = settings["output_dir"]
    assert sorted(path.name for path in output.glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-9",
    ]
    assert not (output / "train_results.json").exists()
    interrupt(None)
    capsys.readouterr()
    assert run(words(settings)) == 0
    said = capsys.readouterr().out
    assert f"resuming from {output / 'checkpoint-9'}" in said
    assert " → " not in said
    assert interrupt.micro_steps == (
        5 if kind == "between micro-batches" else 3
    )  # an epoch is five micro-batches
    expected, resumed = weights(tmp_path / "whole"), weights(output)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
    for name in ("loss", "ce_loss", "mce_loss", "learning_rate"):
        assert logged(output, name) == logged(tmp_path / "whole", name)
    assert len(logged(output, "loss")) == 12


def test_another_start_is_another_end(settings, tmp_path, interrupt):
    """The comparison above can fail: without the checkpoint's optimizer the weights differ."""
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    main(words(settings, output_dir=tmp_path / "whole"))
    interrupt(4)
    assert run(words(settings)) == 130
    path = settings["output_dir"] / "checkpoint-3" / "optimizer.pt"
    state = torch.load(path)
    for moments in state["state"].values():
        moments["exp_avg"].zero_()
    torch.save(state, path)
    vouch(path.parent)
    interrupt(None)
    assert run(words(settings)) == 0
    expected, resumed = weights(tmp_path / "whole"), weights(settings["output_dir"])
    assert any(not torch.equal(resumed[name], value) for name, value in expected.items())


def test_without_resume_the_run_starts_anew(settings, interrupt, capsys):
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    interrupt(4)
    assert run(words(settings)) == 130
    interrupt(None)
    assert run(words(settings, resume="false")) == 2
    assert "holds checkpoints (checkpoint-3)" in capsys.readouterr().err
    assert run(words(settings, resume="false", overwrite="true", max_steps=2)) == 0
    assert not (settings["output_dir"] / "checkpoint-3").exists()
    assert len(logged(settings["output_dir"], "loss")) == 2


def test_an_empty_checkpoint_is_passed_over(settings, interrupt, capsys):
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    interrupt(4)
    assert run(words(settings)) == 130
    (settings["output_dir"] / "checkpoint-5").mkdir()
    interrupt(None)
    assert run(words(settings)) == 0
    said = capsys.readouterr().out
    assert "checkpoint-5 is not whole, so it is skipped" in said
    assert f"resuming from {settings['output_dir'] / 'checkpoint-3'}" in said


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_only_an_empty_checkpoint(settings, capsys, overwrite):
    empty = settings["output_dir"] / "checkpoint-2"
    empty.mkdir(parents=True)
    assert run(words(settings, overwrite=overwrite)) == 2
    assert "none of the 1 checkpoints" in capsys.readouterr().err
    assert empty.is_dir()


def test_training_for_longer_is_said(settings, interrupt, capsys):
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    interrupt(4)
    assert run(words(settings)) == 130
    interrupt(None)
    assert run(words(settings, max_steps=7, matrix_weight=0.5)) == 0
    assert "from step 4 on: max_steps 6 → 7, matrix_weight 1.0 → 0.5" in capsys.readouterr().out
    state = json.loads((settings["output_dir"] / "trainer_state.json").read_text())
    assert state["global_step"] == 7


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint(settings, interrupt, capsys, name):
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    interrupt(5)
    assert run(words(settings)) == 130
    interrupt(None)
    path = settings["output_dir"] / "checkpoint-4" / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    capsys.readouterr()
    assert run(words(settings)) == 0
    said = capsys.readouterr().out
    assert f"{path.parent} is not whole, so it is skipped: {name} has 1000 bytes instead of {size}" in said
    assert f"resuming from {settings['output_dir'] / 'checkpoint-2'}" in said


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_checkpoint_with_code(settings, interrupt, tmp_path, capsys):
    settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    interrupt(5)
    assert run(words(settings)) == 130
    interrupt(None)
    path = settings["output_dir"] / "checkpoint-4" / "optimizer.pt"
    torch.save(Attack(tmp_path / "executed"), path)
    vouch(path.parent)
    assert run(words(settings)) == 2
    assert f"{path} holds posix.mkdir" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_the_disk_is_full_in_a_save(settings, tmp_path):
    """On a real file system with room for one checkpoint, not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        output = disk / "out"
        settings |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "output_dir": output}
        full = run_script(words(settings))
        assert full.returncode == 2, full.stderr
        assert "error: the disk is full" in full.stderr
        assert not (output / "model.safetensors").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        rest = run_script(words(settings))
        assert rest.returncode == 0, rest.stderr
        assert "is not whole, so it is skipped: its save was interrupted" in rest.stdout
        assert f"resuming from {output}/checkpoint-" in rest.stdout
        main(words(settings, output_dir=tmp_path / "whole"))
        expected = weights(tmp_path / "whole")
        assert all(torch.equal(value, expected[name]) for name, value in weights(output).items())
    finally:
        subprocess.run(["umount", disk], check=True)


def wait_for(process, path, log):
    wait_until(path.exists, process, log)


@pytest.fixture
def started(settings, tmp_path):
    """Start the recipe as a process of its own; returns it with its log."""
    processes = []

    def start(launcher=(), **changed):
        log = tmp_path / "log"
        command = [sys.executable, *launcher, str(RECIPES / "finetune.py"), *words(settings, **changed)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        with log.open("w") as stream:
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=stream, stderr=stream, start_new_session=True
                )
            )
        return processes[-1], log

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# How it is started, what the launcher's exit code is, and whether a signal reaches it alone or every process.
LAUNCH = ("-m", "accelerate.commands.launch", "--main_process_port", "0")
TWO = (*LAUNCH, "--num_processes", "2", "--config_file")
STARTED = {
    "python": ((), 143, False),
    "accelerate": ((*LAUNCH, "--num_processes", "1"), -signal.SIGTERM, False),
    "ddp": ((*TWO, str(RECIPES / "accelerate" / "cpu.yaml")), 1, False),
    "ddp, all processes": ((*TWO, str(RECIPES / "accelerate" / "cpu.yaml")), 1, True),
    "zero2": ((*TWO, str(RECIPES / "accelerate" / "zero2.yaml")), 1, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STARTED)
def test_preempted(settings, started, tmp_path, kind):
    launcher, code, to_all = STARTED[kind]
    settings |= {"max_steps": 300, "save_strategy": "steps", "save_steps": 5, "save_total_limit": 1}
    settings |= {"per_device_train_batch_size": 2}
    process, log = started(launcher)
    output = settings["output_dir"]
    wait_for(process, output / "checkpoint-5" / "manifest.json", log)
    if to_all:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) == code
    wait_until(lambda: "the same command goes on from" in log.read_text())  # a child may outlive its launcher
    said = log.read_text()
    assert said.count("stopped by SIGTERM; the run is not finished, and the same command goes on from") == 1
    assert not (output / "train_results.json").exists()
    assert not (output / "model.safetensors").exists()
    assert (output / "_UNFINISHED").exists()
    (newest,) = output.glob("checkpoint-*")
    assert problem_of(newest) is None
    assert str(newest) in said
    step = int(newest.name.rpartition("-")[2])
    assert step < 300

    settings["max_steps"] = step + 1
    settings["lr_scheduler_type"] = "constant"
    settings["warmup_steps"] = 0
    result = run_script(words(settings), launcher, DS_ACCELERATOR="cpu")
    assert result.returncode == 0, result.stderr
    assert f"resuming from {newest}" in result.stdout
    assert not (output / "_UNFINISHED").exists()


# Sixty rows are loaded and trained on faster than a busy machine sends a signal.
MUCH_DATA = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("finetune", sys.argv[1])
finetune = importlib.util.module_from_spec(spec)
spec.loader.exec_module(finetune)
load = finetune.tokenized
finetune.tokenized = lambda *given: (time.sleep(600), load(*given))[1]
sys.exit(finetune.run(sys.argv[2:]))
"""


def test_preempted_before_training(settings, started, tmp_path):
    """While data and model are loaded there is nothing to save."""
    process, log = started(("-c", MUCH_DATA), dataset_format="gsm8k", max_steps=3)
    wait_for(process, settings["output_dir"], log)  # made before anything is loaded
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) == 143
    assert not list(settings["output_dir"].glob("checkpoint-*"))
    assert "stopped by SIGTERM; the run is not finished" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "trials"), [("single", 4), pytest.param("ddp", 2, marks=pytest.mark.ci), ("zero2", 2)]
)
def test_kill_trials(engine, trials):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    words = ["--trials", str(trials), "--engine", engine]
    result = run_script(words, script=RECIPES.parent / "benchmarks" / "kill_trials.py", timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{engine}: {trials}/{trials} ended with the weights of the undisturbed run" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", ["zero_pp_rank_1_mp_rank_00_optim_states.pt", "rng_state_1.pth"])
def test_a_deepspeed_checkpoint_with_code(settings, tmp_path, stage, name):
    pytest.importorskip("deepspeed")
    launcher = (*TWO, str(RECIPES / "accelerate" / f"zero{stage}.yaml"), "--mixed_precision", "no")
    settings |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    assert run_script(words(settings), launcher, DS_ACCELERATOR="cpu").returncode == 0
    for result in ("train_results.json", "model.safetensors"):
        (settings["output_dir"] / result).unlink()
    settings |= {"max_steps": 3}
    folder = settings["output_dir"] / "checkpoint-2"
    (path,) = folder.rglob(name)
    own = path.read_bytes()
    torch.save(Attack(tmp_path / "executed"), path)
    facts = read_manifest(folder)
    write_manifest(folder, {key: facts[key] for key in ("step", "world_size", "engine")})
    refused = run_script(words(settings), launcher, DS_ACCELERATOR="cpu")
    assert refused.returncode != 0
    assert f"{path} holds posix.mkdir" in refused.stderr
    assert not (tmp_path / "executed").exists()

    path.write_bytes(own)
    vouch(folder)  # whose shards they are is not known any more: taken on the user's word
    alone = run_script(words(settings))
    assert alone.returncode == 2
    assert "was saved by 'deepspeed', and this launch is 'plain'" in alone.stderr
    assert run_script(words(settings), launcher, DS_ACCELERATOR="cpu").returncode == 0
