import itertools

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from mce_llm.vision.data import EpochSampler, ImageDataError, OrderedSampler, sample_seed

sizes = st.tuples(st.integers(1, 60), st.integers(1, 7), st.integers(1, 4), st.booleans())


def indices(sampler):
    return [[index for _, index in batch] for batch in sampler]


def samplers(count, batch, world, **options):
    return [EpochSampler(count, batch, rank=r, world_size=world, **options) for r in range(world)]


@trials(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 2**40), st.integers(0, 1000))
def test_processes_share_each_step_of_one_process(size, seed, epoch):
    count, batch, world, drop = size
    try:
        parts = samplers(count, batch, world, seed=seed, drop_last=drop)
    except ImageDataError:
        assert count < batch * world
        return
    alone = EpochSampler(count, batch * world, seed=seed, drop_last=drop)
    for sampler in [*parts, alone]:
        sampler.set_epoch(epoch)
    steps = list(zip(*(indices(part) for part in parts), strict=True))  # as many in every process
    assert all(len(part) == len(steps) for part in parts)
    for step, together in zip(steps, indices(alone), strict=False):
        assert list(itertools.chain(*step)) == together
        assert max(map(len, step)) - min(map(len, step)) <= 1
    seen = [index for step in steps for part in step for index in part]
    assert len(seen) == len(set(seen))
    left_out = count - len(seen)
    assert left_out < (batch * world if drop else world)
    assert {key[0] for part in parts for keys in part for key in keys} == {epoch}


@trials(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 8))
def test_skipping_leaves_the_rest_as_it_was(size, skip):
    count, batch, world, drop = size
    try:
        sampler = EpochSampler(count, batch, rank=world - 1, world_size=world, seed=3, drop_last=drop)
    except ImageDataError:
        return
    sampler.set_epoch(5)
    whole = indices(sampler)
    if skip > len(whole):
        with pytest.raises(ImageDataError, match=f"an epoch has {len(whole)} batches"):
            sampler.set_epoch(5, skip)
        return
    sampler.set_epoch(5, skip)
    assert indices(sampler) == whole[skip:]
    assert len(sampler) == len(whole)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = set()
    for seed, epoch in itertools.product(range(3), range(3)):
        sampler = EpochSampler(20, 20, seed=seed)
        sampler.set_epoch(epoch)
        orders.add(tuple(indices(sampler)[0]))
        assert sorted(indices(sampler)[0]) == list(range(20))
    assert len(orders) == 9


@trials(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 7), st.integers(1, 5))
def test_evaluation_sees_every_image_once_and_in_order(count, batch, world):
    parts = [OrderedSampler(count, batch, rank=rank, world_size=world) for rank in range(world)]
    shares = [[index for keys in indices(part) for index in keys] for part in parts]
    assert list(itertools.chain(*shares)) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [len(part) for part in parts] == [len(indices(part)) for part in parts]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpochSampler(10, 0), "batch_size must be at least 1, got 0"),
        (lambda: EpochSampler(10, 11), "a batch of 11 images needs 11 images, and there are 10"),
        (lambda: EpochSampler(10, 6, world_size=2), "6 images in each of 2 processes needs 12 images"),
        (lambda: EpochSampler(1, 6, world_size=2, drop_last=False), "needs 12 images, and there are 1"),
        (
            lambda: EpochSampler(10, 2, rank=2, world_size=2),
            r"rank must be in \[0, 2\) with 2 processes, got 2",
        ),
        (lambda: OrderedSampler(10, 2, rank=-1), "got -1"),
        (lambda: OrderedSampler(10, 2).set_epoch(0, 6), "have 5 batches, got epoch 0, skip 6"),
        (lambda: EpochSampler(10, 2).set_epoch(-1), "counted from 0, got -1"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ImageDataError, match=message):
        make()


def test_seeds_have_nothing_in_common():
    seeds = [sample_seed(*key) for key in itertools.product(range(10), range(10), range(100))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # torch's generator takes 32 bits of them: 10,000 share some by chance about 0.01 times.
    assert len({seed & 0xFFFFFFFF for seed in seeds}) >= len(seeds) - 2
    ones = sum(bin(seed).count("1") for seed in seeds) / (63 * len(seeds))
    assert abs(ones - 0.5) < 0.003  # 630,000 fair bits: 0.0006 is one standard deviation
    assert sample_seed(1, 0, 0) != sample_seed(0, 1, 0) != sample_seed(0, 0, 1)
