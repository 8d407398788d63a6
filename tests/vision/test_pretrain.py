"""The pretraining script, as it is run."""

import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from helpers.pretraining import TINY, journal, words
from helpers.processes import kill_all
from helpers.scripts import ROOT, load_script
from helpers.waiting import wait_until
from mce_llm.vision.models import load_backbone
from mce_llm.vision.running import run_script
from mce_llm.vision.training.method import METHODS
from mce_llm.vision.training.settings import PretrainSettings

pretrain = load_script("vision/pretrain.py")

CPU = ROOT / "recipes" / "accelerate" / "cpu.yaml"


def weights(folder):
    return load_backbone(folder)[0].state_dict()


def assert_same(one, other, **tolerance):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow if m in ("mec", "total_coding_rate") else ()) for m in METHODS],
)
def test_every_method_trains(method, tmp_path, capsys):
    assert run_script(pretrain.main, words(tmp_path, method=method)) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["epochs"] == 2
    assert summary["steps"] == 8
    assert 0 <= summary["monitor/knn_top1"] <= 1
    assert 1 <= summary["monitor/effective_rank"] <= 8
    lines = journal(tmp_path)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert set(lines[0]) == {"step", "epoch", *(name for name in lines[1] if name.startswith("monitor/"))}
    assert lines[1]["train/learning_rate"] == pytest.approx(10 / 256)  # the warm-up's end
    with (tmp_path / "spectra.jsonl").open(encoding="utf-8") as file:
        spectra = [json.loads(line) for line in file]
    assert [s["epoch"] for s in spectra] == [0, 1, 2]
    assert len(spectra[0]["encoder"]) == 8
    assert len(spectra[0]["embedding"]) == 12
    assert (tmp_path / "teacher" / "backbone.safetensors").exists() == (METHODS[method].target == "teacher")
    _, spec, facts = load_backbone(tmp_path)
    assert spec.stem == "cifar"
    assert facts["method"] == method
    assert not (tmp_path / "checkpoint.pt").exists()
    assert "kNN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gradient_accumulation_steps": 2}, r"covariance of a whole batch"),
        ({"learning_rate": 0.1}, r"give base_learning_rate"),
        ({"method": "matrix_sll"}, r"unknown method 'matrix_sll' \(did you mean 'matrix_ssl'"),
        ({"loss_options": "{gama: 1}"}, r"gamma"),
        ({"loss_options": "3"}, r"loss_options must be a mapping"),
        ({"batch_size": 41}, r"a batch of 41 images needs 41 images, and there are 40"),
        ({"batch_size": 1}, r"batch_size must be at least 2"),
        ({"warmup_epochs": 2}, r"warmup_epochs \(2\) must be fewer than epochs \(2\)"),
        ({"backbone": "resnet19"}, r"no classification model 'resnet19'"),
        ({"stem": "cifra"}, r"stem must be imagenet or cifar"),
        ({"dataset": "nowhere/at/all"}, r"nowhere/at/all"),
        ({"optimizer": "adam"}, r"optimizer must be sgd or lars"),
    ],
)
def test_what_is_refused(tmp_path, changed, message, capsys):
    import re

    assert run_script(pretrain.main, words(tmp_path, **changed)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_run_that_diverges_says_so(tmp_path, capsys):
    code = run_script(
        pretrain.main, words(tmp_path, method="sim_siam", base_learning_rate=1e30, warmup_epochs=0)
    )
    assert code == 2
    assert "finite" in capsys.readouterr().err


@pytest.mark.parametrize(("epochs", "warmup"), [(5, 0.5), (19, 1.9), (20, 10), (400, 10)])
def test_the_warm_up_fits_into_the_training(epochs, warmup):
    settings = PretrainSettings(epochs=epochs)
    assert settings.warmup == warmup
    assert settings.warmup_epochs is None
    assert PretrainSettings(epochs=epochs, warmup_epochs=0.25).warmup == 0.25


def test_a_short_training_needs_no_word_on_the_warm_up(tmp_path, capsys):
    short = {name: value for name, value in TINY.items() if name != "warmup_epochs"}
    arguments = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in short.items()
    ]
    assert run_script(pretrain.main, [*arguments, f"--output_dir={tmp_path}", "--monitor_every=0"]) == 0
    assert "warm-up: 0.2 of 2 epochs (warmup_epochs is not set)" in capsys.readouterr().out
    assert journal(tmp_path)[0]["train/learning_rate"] < 10 / 256  # after one step of warm-up the rate falls


def test_eigenvalues_below_the_floor_are_counted(tmp_path):
    """At this μ, with a teacher that stays near its random start, a batch without a log det used to end the run."""
    changed = {
        "loss_options": "{mu: 0.05, log: exact}",
        "teacher_momentum": 0.996,
        "monitor_every": 0,
        "epochs": 4,
    }
    assert run_script(pretrain.main, words(tmp_path, **changed)) == 0
    assert all(line["train/floored_eigenvalues"] >= 0 for line in journal(tmp_path))


def test_a_run_keeps_the_logarithm_that_it_came_to(tmp_path, monkeypatch):
    """The series diverges in the first batch for μ = 1.9; that is part of the checkpoint."""
    changed = {"loss_options": "{mu: 1.9, on_divergence: exact}", "monitor_every": 0}
    with monkeypatch.context() as patch:
        stopped_at(patch, 2)
        with pytest.warns(UserWarning, match="all that follow take the exact logarithm"):
            assert run_script(pretrain.main, words(tmp_path, **changed)) == 143
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["loss"] == {
        "_extra_state": {"diverged": True}
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it would switch, and say so, once more
        assert run_script(pretrain.main, words(tmp_path, **changed)) == 0
    assert all(line["train/exact_logarithm"] == 1 for line in journal(tmp_path))


def stopped_at(monkeypatch, step):
    """Have a signal come at a step."""
    real = pretrain.leave_if_asked
    count = 0

    def leave(save, checkpoint):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGTERM)
        real(save, checkpoint)

    monkeypatch.setattr(pretrain, "leave_if_asked", leave)


@pytest.mark.parametrize(
    "step", [7, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_interrupted_and_gone_on_ends_with_the_same_weights(tmp_path, monkeypatch, step):
    assert run_script(pretrain.main, words(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        stopped_at(patch, step)
        assert run_script(pretrain.main, words(tmp_path / "parts")) == 143
    assert not (tmp_path / "parts" / "summary.json").exists()
    assert run_script(pretrain.main, words(tmp_path / "parts")) == 0
    for part in ("", "teacher"):
        assert_same(weights(tmp_path / "whole" / part), weights(tmp_path / "parts" / part))
    undisturbed, gone_on = journal(tmp_path / "whole"), journal(tmp_path / "parts")
    assert [line["step"] for line in gone_on] == [line["step"] for line in undisturbed]
    assert gone_on[-1]["monitor/knn_top1"] == undisturbed[-1]["monitor/knn_top1"]


def test_killed_before_its_first_checkpoint_a_run_measures_its_start_once(tmp_path, monkeypatch):
    def killed(save, checkpoint):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "leave_if_asked", killed)
        assert run_script(pretrain.main, words(tmp_path)) == 130
    assert [line["step"] for line in journal(tmp_path)] == [0]
    assert run_script(pretrain.main, words(tmp_path)) == 0
    for name in ("metrics.jsonl", "spectra.jsonl"):
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 4, 8]


def test_watching_changes_nothing(tmp_path):
    for every in (1, 0):
        assert run_script(pretrain.main, words(tmp_path / str(every), monitor_every=every)) == 0
    assert_same(weights(tmp_path / "1"), weights(tmp_path / "0"))
    assert not (tmp_path / "0" / "spectra.jsonl").exists()


def test_a_finished_run_stays(tmp_path, capsys):
    assert run_script(pretrain.main, words(tmp_path, epochs=1, warmup_epochs=0)) == 0
    assert run_script(pretrain.main, words(tmp_path, epochs=1, warmup_epochs=0)) == 2
    assert "holds a finished run" in capsys.readouterr().err


def launch(output, processes, *, wait=True, **changed):
    command = [
        sys.executable,
        *("-m", "accelerate.commands.launch", "--config_file", str(CPU), "--num_processes", str(processes)),
        *("--main_process_port", "0"),
        pretrain.__file__,
        *words(output, **changed),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if wait:
        shown = started.communicate(timeout=300)[0]
        assert started.returncode == 0, shown[-4000:]
        return shown
    return started


def test_two_processes_are_one(tmp_path):
    """Batch norms, loss and teacher are of the whole batch, so the weights are those of one process, to rounding.

    Rounding grows with the steps, tenfold in each at a large learning rate: hence four steps at a small one.
    """
    changed = {"epochs": 1, "warmup_epochs": 0, "base_learning_rate": 0.1}
    assert run_script(pretrain.main, words(tmp_path / "one", **changed)) == 0
    launch(tmp_path / "two", 2, **changed)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.manual_seed(0)
    begun = pretrain.build_backbone(load_backbone(tmp_path / "one")[1]).state_dict()
    for name, value in one.items():
        if value.ndim > 1:
            moved = (value - begun[name]).norm()
            assert (two[name] - value).norm() < 1e-4 * moved, name
    for key in ("train/loss", "monitor/knn_top1"):
        assert journal(tmp_path / "two")[-1][key] == pytest.approx(
            journal(tmp_path / "one")[-1][key], rel=1e-6
        )


@pytest.mark.slow
def test_uneven_batches_over_processes_are_refused(tmp_path):
    started = launch(tmp_path, 2, wait=False, batch_size=9)
    shown = started.communicate(timeout=200)[0]
    assert started.returncode != 0
    assert "batch_size 9 cannot be dealt out evenly to 2 processes; 8 can" in shown


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_moment(tmp_path, processes):
    """SIGKILL, twice, at moments that are not chosen; the same command then ends with bitwise the same weights."""
    changed = {"epochs": 6, "checkpoint_steps": 3, "limit": 120}
    launch(tmp_path / "whole", processes, **changed)
    checkpoint = tmp_path / "parts" / "checkpoint.pt"

    def saved():
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    for _ in range(2):
        before, started = saved(), launch(tmp_path / "parts", processes, wait=False, **changed)
        wait_until(lambda before=before: saved() > before, started)
        kill_all(started)
        started.wait()
        started.stdout.close()
    launch(tmp_path / "parts", processes, **changed)
    assert json.loads((tmp_path / "parts" / "summary.json").read_text())["processes"] == processes
    for part in ("", "teacher"):
        assert_same(weights(tmp_path / "whole" / part), weights(tmp_path / "parts" / part))
