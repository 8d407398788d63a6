"""Workers of data loaders: deaf to a scheduler's signals, and gone when the process they work for is."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from helpers.waiting import HANG
from mce_llm.running.preemption import SIGNALS
from mce_llm.running.workers import shield_workers


def loader(**more):
    return shield_workers(
        DataLoader(TensorDataset(torch.arange(40)), num_workers=2, prefetch_factor=1, **more)
    )


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


def test_signals_to_the_workers_change_nothing():
    before = set(multiprocessing.active_children())
    batches = iter(loader())
    first = [next(batches), next(batches)]  # one of each worker: both have begun
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        for number in SIGNALS:
            os.kill(worker.pid, number)
    rest = list(batches)
    assert [int(batch[0]) for batch in (*first, *rest)] == list(range(40))


def test_what_a_loader_does_in_its_workers_is_done_still():
    numbers = multiprocessing.get_context("fork").Array("i", [-1, -1])

    def own(worker):
        numbers[worker] = signal.getsignal(signal.SIGUSR1)

    assert len(list(loader(worker_init_fn=own))) == 40
    assert list(numbers) == [signal.SIG_IGN, signal.SIG_IGN]


def test_without_workers_nothing_is_changed():
    plain = DataLoader(TensorDataset(torch.arange(4)))
    assert shield_workers(plain) is plain
    assert plain.worker_init_fn is None
    assert shield_workers(iter(())) is not None  # what is no loader of torch's has no workers either
