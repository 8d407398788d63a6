import itertools
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from helpers.waiting import HANG
from mce_llm.vision.data import (
    AugmentationSettings,
    CorruptImageError,
    DataSettings,
    eval_view,
    loading,
    open_images,
    train_views,
    view_loader,
)
from mce_llm.vision.data import workers as processes
from mce_llm.vision.data.workers import default_workers, usable_cores


@pytest.fixture(scope="module")
def shapes():
    return open_images(DataSettings("shapes", image_size=16, limit=24, cache_images="true"))


def load(source, batch_size=6, *, epoch=0, skip=0, **options):
    views = train_views(16, source.mean, source.std, AugmentationSettings(blur="true"))
    loader = view_loader(source, views, batch_size, **{"num_workers": 0, "seed": 7, **options})
    loader.set_epoch(epoch, skip)
    return list(loader)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip([*x.views, x.labels, x.indices], [*y.views, y.labels, y.indices], strict=True)
    )


def test_a_batch(shapes):
    batches = load(shapes)
    assert len(batches) == 4
    for batch in batches:
        assert [view.shape for view in batch.views] == [(6, 3, 16, 16)] * 2
        assert batch.labels.tolist() == [shapes.labels[i] for i in batch.indices.tolist()]
        assert not torch.equal(*batch.views)
    assert sorted(i for batch in batches for i in batch.indices.tolist()) == list(range(24))


def test_workers_change_nothing(shapes):
    assert same(load(shapes, num_workers=2), load(shapes))


def test_without_seeds_they_would(shapes, monkeypatch):
    class Unseeded:
        def manual_seed(self, seed):
            pass

    monkeypatch.setattr(loading.torch, "default_generator", Unseeded())
    assert not same(load(shapes, num_workers=1), load(shapes))


def test_processes_change_nothing(shapes):
    together = load(shapes, 12)
    parts = [load(shapes, 4, rank=rank, world_size=3, num_workers=rank % 2) for rank in range(3)]
    for whole, *shares in zip(together, *parts, strict=True):
        for number in range(2):
            assert torch.equal(whole.views[number], torch.cat([share.views[number] for share in shares]))
        assert torch.equal(whole.indices, torch.cat([share.indices for share in shares]))


def test_batch_size_and_place_in_the_batch_change_no_view(shapes):
    by_index = {}
    for batch in itertools.chain(load(shapes, 6), load(shapes, 8)):
        for position, index in enumerate(batch.indices.tolist()):
            view = batch.views[0][position]
            assert torch.equal(by_index.setdefault(index, view), view)
    assert len(by_index) == 24


def test_seed_and_epoch_change_everything(shapes):
    base = load(shapes)
    for other in (load(shapes, epoch=1), load(shapes, seed=8)):
        assert [b.indices.tolist() for b in other] != [b.indices.tolist() for b in base]
        views = {i: v for b in base for i, v in zip(b.indices.tolist(), b.views[0], strict=True)}
        for batch in other:
            for i, view in zip(batch.indices.tolist(), batch.views[0], strict=True):
                assert not torch.equal(view, views[i])


def test_skipping_goes_on_exactly_and_loads_nothing(shapes, monkeypatch):
    whole = load(shapes, epoch=3)
    loaded = []
    original = type(shapes).image
    monkeypatch.setattr(type(shapes), "image", lambda self, i: (loaded.append(i), original(self, i))[1])
    assert same(load(shapes, epoch=3, skip=3), whole[3:])
    assert len(loaded) == 6
    assert load(shapes, epoch=3, skip=4) == []


def test_one_loader_gives_many_epochs(shapes):
    views = train_views(16, shapes.mean, shapes.std, AugmentationSettings(blur="true"))
    loader = view_loader(shapes, views, 6, seed=7, num_workers=1)
    next(iter(loader))  # left in the middle
    for epoch, skip in ((2, 1), (0, 0), (1, 0)):
        loader.set_epoch(epoch, skip)
        assert same(list(loader), load(shapes, epoch=epoch, skip=skip))
    assert len(loader) == 4


def test_evaluation_is_in_order_and_complete(shapes):
    view = eval_view(16, shapes.mean, shapes.std)
    parts = []
    for rank in range(5):
        loader = view_loader(shapes, view, 2, shuffle=False, rank=rank, world_size=5, num_workers=0)
        parts += [batch.indices for batch in loader]
        assert all(batch.images.shape[1:] == (3, 16, 16) for batch in loader)
    assert torch.cat(parts).tolist() == list(range(24))


def test_loading_here_leaves_the_generator_alone(shapes):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load(shapes)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_image_is_an_error_of_its_own(num_workers, image_folder, settings):
    root = image_folder("train", {"a": 5})
    (root / "a" / "03.png").write_bytes(b"garbage")
    source = open_images(settings(root.parent))
    loader = view_loader(
        source, eval_view(8, source.mean, source.std), 2, shuffle=False, num_workers=num_workers
    )
    batches = iter(loader)
    assert next(batches).indices.tolist() == [0, 1]
    with pytest.raises(CorruptImageError) as caught:
        next(batches)
    said = str(caught.value)
    del caught  # it holds the loader in a cycle, and collecting that takes its queues apart before its workers are told
    assert said.startswith(str(root / "a" / "03.png"))
    assert "Traceback" not in said


def test_signals_of_a_scheduler_do_not_stop_workers(shapes):
    before = set(multiprocessing.active_children())
    views = train_views(16, shapes.mean, shapes.std)
    loader = view_loader(shapes, views, 2, num_workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    # From another process: SIGTERM of the one that owns a worker ends it.
    send = f"import os; [os.kill({worker.pid}, number) for number in ({int(signal.SIGTERM)}, {int(signal.SIGUSR1)})]"
    subprocess.run([sys.executable, "-c", send], check=True)
    assert len(list(batches)) == 11
    assert worker.is_alive()


def leave_in_the_middle(shapes):
    """What a training does that is stopped: it leaves with an epoch unfinished and its workers at work."""
    views = train_views(16, shapes.mean, shapes.std)
    batches = iter(view_loader(shapes, views, 2, num_workers=2))
    next(batches)
    globals()["kept"] = batches  # so that nothing ends the workers before the process leaves


def test_a_process_that_leaves_in_the_middle_of_an_epoch_ends(shapes):
    process = multiprocessing.get_context("fork").Process(target=leave_in_the_middle, args=(shapes,))
    process.start()
    process.join(HANG)
    ended = process.exitcode
    process.kill()
    assert ended == 0, f"still running after {HANG} s, or ended with {ended}"


def test_the_number_of_workers_is_chosen_and_said(shapes, monkeypatch, capsys):
    view = eval_view(16, shapes.mean, shapes.std)
    loader = view_loader(shapes, view, 4)
    assert loader.num_workers == default_workers() >= 1
    assert (
        f"loaded by {loader.num_workers} worker processes (num_workers is not set)" in capsys.readouterr().out
    )
    view_loader(shapes, view, 4, num_workers=0)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(processes, "usable_cores", lambda: 12)
    assert default_workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "40")
    assert default_workers() == 1


def test_usable_cores_are_no_more_than_the_machine_s():
    assert 1 <= usable_cores() <= os.cpu_count()
