"""The grouped search for the most probable tokens against torch.topk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.lm.top_tokens import GROUP, top_tokens


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 4),
    vocabulary=st.integers(1, 3000),
    count=st.integers(1, 24),
    levels=st.sampled_from([2, 50, 10**6]),  # few levels: many equal scores
    seed=st.integers(0, 2**16),
)
def test_same_scores_as_topk_and_ids_that_hold_them(tokens, vocabulary, count, levels, seed):
    count = min(count, vocabulary)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (tokens, vocabulary), generator=generator).float()
    values, ids = top_tokens(scores, count)
    assert torch.equal(values, scores.topk(count, dim=-1).values)
    assert torch.equal(scores.gather(-1, ids), values)
    whole = scores[:, : vocabulary // GROUP * GROUP].unflatten(-1, (vocabulary // GROUP, GROUP))
    for known, found in zip(top_tokens(scores, count, whole.amax(dim=-1)), (values, ids), strict=True):
        assert torch.equal(known, found)
    assert all(len(set(row.tolist())) == count for row in ids)


@pytest.mark.parametrize("place", [0, 63, 64, 1999, 2048, 2049])
def test_finds_one_large_score_wherever_it_is(place):
    scores = torch.zeros(1, 2050)  # 32 groups and two tokens beyond them
    scores[0, place] = 1
    values, ids = top_tokens(scores, 4)
    assert ids[0, 0] == place
    assert values.tolist() == [[1, 0, 0, 0]]


def test_all_large_scores_in_one_group():
    scores = torch.zeros(1, 4096)
    scores[0, 640:660] = torch.arange(1.0, 21.0)
    _, ids = top_tokens(scores, 20)
    assert ids[0].tolist() == list(range(659, 639, -1))


def test_not_a_number_is_kept_in_sight():
    scores = torch.zeros(1, 4096)
    scores[0, 1000] = torch.nan
    values, ids = top_tokens(scores, 3)
    assert torch.isnan(values[0, 0])
    assert ids[0, 0] == 1000
