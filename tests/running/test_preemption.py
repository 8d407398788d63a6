"""Signals of a scheduler: outside of training the process leaves at once, within it after a whole save."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from transformers import TrainerCallback

from helpers.interrupted import checkpoint_names, make_trainer, same, weights
from mce_llm.lm.training.manifest import problem_of, read_manifest
from mce_llm.running import preemption
from mce_llm.running.preemption import EXIT_CODE, PreemptedError, handle_signals, requested


class SignalAt(TrainerCallback):
    """Signals this process at an event of a step."""

    def __init__(self, event, step, number=signal.SIGTERM):
        def send(args, state, control, **kwargs):
            if state.global_step == step:
                os.kill(os.getpid(), number)

        setattr(self, event, send)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights after four steps, by the settings that draw on random numbers."""
    ends = {}

    def end(**changed):
        key = tuple(sorted(changed.items()))
        if key not in ends:
            run = make_trainer(tmp_path_factory.mktemp("undisturbed"), save_strategy="no", **changed)
            run.train()
            ends[key] = weights(run)
        return ends[key]

    return end


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_outside_of_training(number):
    before = signal.getsignal(number)
    pattern = f"stopped by {number.name}; the run is not finished"
    with pytest.raises(PreemptedError, match=pattern) as caught, handle_signals():
        os.kill(os.getpid(), number)
    assert caught.value.code == EXIT_CODE == 143
    assert signal.getsignal(number) is before
    assert not requested()


@pytest.mark.parametrize(
    ("event", "step", "saved"),
    [
        ("on_step_begin", 0, 1),
        ("on_pre_optimizer_step", 0, 1),  # asked already, or about to be
        ("on_step_end", 1, 2),
        ("on_log", 1, 2),
        ("on_evaluate", 1, 2),
        ("on_prediction_step", 1, 2),
        ("on_save", 2, 3),
        ("on_step_begin", 2, 3),  # the last step of an epoch
        ("on_epoch_end", 3, 4),
        ("on_step_begin", 3, 4),  # the last step of all
    ],
)
def test_in_training(tmp_path, undisturbed, capfd, event, step, saved):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1, "save_total_limit": 1}
    handlers = [signal.getsignal(number) for number in preemption.SIGNALS]
    run = make_trainer(tmp_path, [SignalAt(event, step)], **settings)
    with pytest.raises(PreemptedError) as caught, handle_signals():
        run.train()
    folder = caught.value.checkpoint
    assert folder == tmp_path / "out" / f"checkpoint-{saved}" or (event, saved) == (
        "on_pre_optimizer_step",
        1,
    )
    assert f"goes on from {folder}" in str(caught.value)
    assert problem_of(folder) is None
    assert checkpoint_names(tmp_path / "out") == [folder.name]
    assert "SIGTERM: finishing this optimizer step" in capfd.readouterr().err
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == handlers
    again = make_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert same(weights(again), undisturbed())
    evaluated = [entry["step"] for entry in again.state.log_history if "eval_loss" in entry]
    assert evaluated == [1, 2, 3, 4]


def test_what_is_due_at_the_end_of_an_epoch_is_done(tmp_path):
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1}
    run = make_trainer(tmp_path, [SignalAt("on_step_begin", 2)], **settings)
    with pytest.raises(PreemptedError, match="checkpoint-3"), handle_signals():
        run.train()
    again = make_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in again.state.log_history if "eval_loss" in entry] == [3, 6]


@pytest.mark.parametrize("changed", [{"save_strategy": "no"}, {"save_only_model": True}])
def test_what_going_on_needs_is_saved_whatever_the_settings(tmp_path, undisturbed, changed):
    run = make_trainer(tmp_path, [SignalAt("on_step_begin", 2, signal.SIGUSR1)], **changed)
    with pytest.raises(PreemptedError, match="stopped by SIGUSR1"), handle_signals():
        run.train()
    assert "optimizer.pt" in read_manifest(tmp_path / "out" / "checkpoint-3")["files"]
    assert run.args.save_only_model == changed.get("save_only_model", False)
    again = make_trainer(tmp_path, **changed)
    again.train(resume_from_checkpoint=True)
    assert same(weights(again), undisturbed())


def test_without_a_signal_nothing_is_different(tmp_path, undisturbed):
    run = make_trainer(tmp_path)
    with handle_signals():
        run.train()
    assert same(weights(run), undisturbed())
    assert checkpoint_names(tmp_path / "out") == ["checkpoint-2", "checkpoint-4"]


def test_worker_processes_outlive_a_signal_to_the_group(tmp_path):
    signalled, before = [], set(multiprocessing.active_children())

    class SignalAll(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                signalled.extend(set(multiprocessing.active_children()) - before)
                # By another process, as a scheduler does: a worker takes a signal of its parent's otherwise.
                pids = [str(pid) for pid in (*(process.pid for process in signalled), os.getpid())]
                subprocess.run(["kill", "-TERM", *pids], check=True)
                time.sleep(0.5)  # a worker that ends is noticed, and breaks off the step

    settings = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    run = make_trainer(tmp_path, [SignalAll()], **settings)
    with pytest.raises(PreemptedError, match="checkpoint-2"), handle_signals():
        run.train()
    assert len(signalled) == 1


def test_another_thread_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with handle_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


SCRIPT = """
import signal
from mce_llm.running import preemption
with preemption.handle_signals(), preemption.training():
    preemption.SAME_REQUEST_SECONDS = 1000
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGUSR1)
    print("trains on", flush=True)
    preemption.SAME_REQUEST_SECONDS = 0  # from now on, what comes is later than that
    signal.raise_signal(signal.SIGTERM)
    print("is never here", flush=True)
"""


def test_again_and_again():
    """Twice at once is one request; later it is another, and nothing is waited for."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_CODE
    assert done.stdout == "trains on\n"
    assert done.stderr.count("finishing this optimizer step") == 1
    assert "SIGTERM again: leaving at once" in done.stderr
