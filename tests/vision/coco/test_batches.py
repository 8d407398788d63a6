"""The stream of batches: complete, unmixed, the same for every number of processes and after every skip."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.vision.coco.batches import ProcessShare, grouped_batches

SETS = st.lists(st.integers(0, 1), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(groups=SETS, batch=st.integers(1, 6), seed=st.integers(0, 5))
def test_every_image_comes_once_per_epoch_and_groups_do_not_mix(groups, batch, seed):
    positions = [10 + 3 * i for i in range(len(groups))]
    group_of = dict(zip(positions, groups, strict=True))
    batches = list(itertools.islice(grouped_batches(positions, groups, batch, seed), 12 * len(groups)))
    assert all(len(b) == batch and len({group_of[p] for _, p in b}) == 1 for b in batches)
    drawn = [draw for b in batches for draw in b]
    assert len(set(drawn)) == len(drawn)
    # An image of a small group waits for others, but each one comes epoch after epoch without a gap.
    for position in positions:
        epochs = [epoch for epoch, p in drawn if p == position]
        assert epochs == list(range(len(epochs)))


@settings(max_examples=25, deadline=None)
@given(groups=SETS, seed=st.integers(0, 3), start=st.integers(0, 9), world=st.sampled_from([1, 2, 4]))
def test_shares_of_processes_are_the_batch_and_skipping_is_exact(groups, seed, start, world):
    positions = list(range(len(groups)))
    whole = list(itertools.islice(grouped_batches(positions, groups, 4, seed), 12))[start:]
    shares = [
        ProcessShare(
            positions, groups, batch_size=4, seed=seed, start=start, stop=12, rank=rank, world_size=world
        )
        for rank in range(world)
    ]
    assert all(len(share) == len(whole) for share in shares)
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert {len(part) for part in parts} == {4 // world}


def test_epochs_and_seeds_are_shuffled_differently():
    def order(seed, epoch):
        batches = itertools.islice(grouped_batches(range(30), [0] * 30, 10, seed), 9)
        return [p for b in batches for e, p in b if e == epoch]

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) == order(0, 0)
