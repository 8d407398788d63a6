"""Workers of data loaders: deaf to a scheduler's signals, and gone when the process they work for is."""

import ctypes
import gc
import multiprocessing
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import TrainerCallback

from helpers.interrupted import make_trainer
from helpers.processes import descendants
from helpers.waiting import HANG, wait_until
from mce_llm.errors import MceLlmError
from mce_llm.running.launching import run_script
from mce_llm.running.preemption import SIGNALS
from mce_llm.running.workers import shield_workers


def loader(dataset=None, **more):
    dataset = TensorDataset(torch.arange(40)) if dataset is None else dataset
    more = {"num_workers": 2, "prefetch_factor": 1, **more}
    return shield_workers(DataLoader(dataset, **more))


class Numbers(Dataset):
    """One item of which no worker ever gives: it is stuck there, letting other threads run or not."""

    def __init__(self, stuck):
        self.stuck, self.reached = stuck, multiprocessing.get_context("fork").Event()

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 3:
            self.reached.set()
            deadlock(ctypes.PyDLL if self.stuck == "holding the interpreter" else ctypes.CDLL)
        return index


def deadlock(library):
    """Lock a mutex twice: nothing that happens in this thread ends that, no signal either."""
    functions, mutex = library(None), ctypes.create_string_buffer(64)
    functions.pthread_mutex_lock(mutex)
    functions.pthread_mutex_lock(mutex)


def leave_in_the_middle(persistent):
    """What a training does that is stopped: it leaves with an epoch unfinished and its workers at work."""
    batches = iter(loader(persistent_workers=persistent))
    next(batches)
    globals()["kept"] = batches  # so that nothing ends the workers before the process leaves


@pytest.mark.parametrize("persistent", [False, True])
def test_a_process_that_leaves_in_the_middle_of_an_epoch_ends(persistent):
    process = multiprocessing.get_context("fork").Process(target=leave_in_the_middle, args=(persistent,))
    process.start()
    process.join(HANG)
    ended = process.exitcode
    process.kill()
    assert ended == 0, f"still running after {HANG} s, or ended with {ended}"


def send(number, workers):
    """From another process than the owner, whose SIGTERM they heed."""
    code = f"import os, sys; [os.kill(int(word), {int(number)}) for word in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", code, *(str(worker.pid) for worker in workers)], check=True)


@pytest.mark.parametrize(
    "method",
    [
        "fork",
        pytest.param("spawn", marks=pytest.mark.slow),
        pytest.param("forkserver", marks=pytest.mark.slow),
    ],
)
def test_signals_to_the_workers_change_nothing(method):
    before = set(multiprocessing.active_children())
    batches = iter(loader(multiprocessing_context=method))
    first = [next(batches), next(batches)]  # one of each worker: both have begun
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for number in (*SIGNALS, signal.SIGINT):
        send(number, workers)
    rest = list(batches)
    assert [int(batch[0]) for batch in (*first, *rest)] == list(range(40))
    del batches
    psutil.wait_procs(workers := [psutil.Process(w.pid) for w in workers if w.is_alive()], HANG)
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize(
    "method",
    [
        "fork",
        pytest.param("spawn", marks=pytest.mark.slow),
        pytest.param("forkserver", marks=pytest.mark.slow),
    ],
)
def test_the_owners_sigterm_ends_a_worker(method):
    before = set(multiprocessing.active_children())
    batches = iter(loader(multiprocessing_context=method, persistent_workers=True))
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # by which torch would say that they are gone
    try:
        for worker in workers:
            worker.terminate()
            worker.join(HANG)
            assert worker.exitcode == 0
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_what_a_loader_does_in_its_workers_is_done_still():
    numbers = multiprocessing.get_context("fork").Array("i", [-1, -1])

    def own(worker):
        numbers[worker] = worker

    assert len(list(loader(worker_init_fn=own))) == 40
    assert list(numbers) == [0, 1]


def test_without_workers_nothing_is_changed():
    plain = DataLoader(TensorDataset(torch.arange(4)))
    assert shield_workers(plain) is plain
    assert plain.multiprocessing_context is None
    assert shield_workers(iter(())) is not None  # what is no loader of torch's has no workers either


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_workers_do_not_outlive_an_owner_that_was_killed(number):
    code = """
        import time, torch
        from torch.utils.data import DataLoader, TensorDataset
        from mce_llm.running.workers import shield_workers
        data = TensorDataset(torch.arange(1000))
        batches = iter(shield_workers(DataLoader(data, num_workers=2, persistent_workers=True)))
        next(batches), next(batches)
        print("at work", flush=True)
        time.sleep(3600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "at work\n"
        workers = descendants(owner)
        assert len(workers) == 2
        owner.send_signal(number)
        assert owner.wait(HANG) == -number
    _, left = psutil.wait_procs(workers, HANG)
    assert not left


def in_a_process_of_its_own(work):
    """Its exit code; it may neither hang nor leave a process behind."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(work()))
    process.start()
    process.join(HANG)
    left, ended = descendants(process), process.exitcode
    process.kill()
    assert ended is not None, f"still running after {HANG} s"
    assert not left
    return ended


class BrokenImageError(MceLlmError):
    """What a user can mend."""


@pytest.mark.parametrize("persistent", [False, True])
def test_an_error_in_the_middle_of_an_epoch_ends_the_workers(persistent, capsys):
    def main(argv):
        batches = iter(loader(persistent_workers=persistent))
        next(batches)
        error = BrokenImageError("an image is broken")
        error.cycle = [batches, error]  # the iterator is left to the collector
        raise error

    before = set(multiprocessing.active_children())
    assert run_script(main) == 2
    assert set(multiprocessing.active_children()) == before
    gc.collect()  # and torch's own end of the iterator has nothing left to wait for
    assert capsys.readouterr().err == "error: an image is broken\n"


@pytest.mark.parametrize("stuck", ["in a lock", "holding the interpreter"])
def test_workers_that_are_stuck_end_with_the_script(stuck):
    def main(argv):
        numbers = Numbers(stuck)
        batches = iter(loader(numbers))
        for _ in range(3):
            next(batches)
        assert numbers.reached.wait(HANG)
        raise BrokenImageError("found while another worker is stuck")

    def script():
        code = run_script(main)
        gc.collect()
        return code

    assert in_a_process_of_its_own(script) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_every_other_ending_ends_them_too(error):
    def main(argv):
        batches = iter(loader())
        next(batches)
        raise error

    before = set(multiprocessing.active_children())
    with suppress(SystemExit, ZeroDivisionError):
        assert run_script(main) == 130
    assert set(multiprocessing.active_children()) == before


def test_a_worker_that_is_killed_is_explained(capsys):
    def main(argv):
        before = set(multiprocessing.active_children())
        batches = iter(loader(TensorDataset(torch.arange(10_000))))
        next(batches)
        (set(multiprocessing.active_children()) - before).pop().kill()
        wait_until(lambda: next(batches) is None)

    assert run_script(main, fewer_workers="dataloader_num_workers") == 2
    said = capsys.readouterr().err
    assert "a process that prepares batches was killed" in said
    assert "with fewer of them (dataloader_num_workers)" in said


def test_workers_that_were_there_before_stay():
    batches = iter(loader())
    next(batches)
    assert run_script(lambda argv: list(loader())) == 0
    assert len(list(batches)) == 39


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    ("ending", "code"), [("error", 2), ("interrupt", 130), ("terminate", 143), ("crash", 2)]
)
def test_the_workers_of_a_language_model_s_training_end_with_it(ending, code, persistent, tmp_path, capsys):
    before = set(multiprocessing.active_children())

    class End(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step != 1:
                return
            (worker,) = set(multiprocessing.active_children()) - before
            if ending == "error":
                raise BrokenImageError("a row is broken")
            if ending == "interrupt":
                raise KeyboardInterrupt
            if ending == "terminate":  # the worker goes on until everything is saved
                send(signal.SIGTERM, [worker])
                signal.raise_signal(signal.SIGTERM)
            else:
                worker.kill()
                wait_until(lambda: False, seconds=HANG)  # torch says it here, in this thread

    more = {"dataloader_num_workers": 1, "dataloader_persistent_workers": persistent}

    def main(argv):
        make_trainer(tmp_path, [End()], **more).train()

    assert run_script(main, fewer_workers="dataloader_num_workers") == code
    assert set(multiprocessing.active_children()) == before
    gc.collect()
    if ending == "crash":
        assert "with fewer of them (dataloader_num_workers)" in capsys.readouterr().err
