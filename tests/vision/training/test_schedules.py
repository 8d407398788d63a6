import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.vision.training.optimizers import optimizer_of
from mce_llm.vision.training.schedules import (
    ScheduleError,
    learning_rate,
    set_learning_rate,
    step_decay,
    warmup_cosine,
)


def test_learning_rate_follows_the_batch():
    assert learning_rate(0.5, 256) == 0.5
    assert learning_rate(0.03, 4096) == pytest.approx(0.48)
    with pytest.raises(ScheduleError, match="at least 1 image, got 0"):
        learning_rate(0.5, 0)


@given(total=st.integers(1, 300), share=st.floats(0, 1), base=st.floats(1e-3, 10), final=st.floats(0, 1e-3))
def test_warmup_cosine_rises_then_falls(total, share, base, final):
    warmup = int(share * total)
    rates = [warmup_cosine(step, total, warmup, base, final) for step in range(total + 1)]
    assert rates[-1] == final
    assert all(rate > 0 for rate in rates[:warmup])
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    if warmup:
        assert rates[warmup - 1] == pytest.approx(base)
    if warmup < total:
        assert rates[warmup] == pytest.approx(base)
    # Rounding may lift a rate by a few units in the last place where the cosine is flat.
    assert all(a >= b - 1e-12 * base for a, b in pairwise(rates[warmup:]))


def test_warmup_cosine_at_known_places():
    assert warmup_cosine(0, 100, 10, 2.0) == pytest.approx(0.2)
    assert warmup_cosine(55, 100, 10, 2.0) == pytest.approx(1.0)  # half of the way down
    assert warmup_cosine(25, 100, 0, 2.0, 1.0) == pytest.approx(1.5 + 0.5 * math.cos(math.pi / 4))
    assert warmup_cosine(1000, 100, 10, 2.0, 0.25) == 0.25


@pytest.mark.parametrize("numbers", [(0, 0, 0), (0, 10, 11), (0, 10, -1), (-1, 10, 2)])
def test_schedules_that_make_no_sense_are_refused(numbers):
    with pytest.raises(ScheduleError, match="0 ≤ warmup ≤ total"):
        warmup_cosine(*numbers, 1.0)


def test_step_decay_falls_at_the_milestones():
    rates = [step_decay(step, (60, 80), 30.0) for step in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([30, 30, 3, 3, 0.3, 0.3])


def test_every_group_keeps_its_own_rate():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (0.5, 2.0)]
    optimizer = optimizer_of("sgd", groups, lr=1.0, momentum=0.9)
    for share in (0.5, 0.1):
        set_learning_rate(optimizer, share)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * share, 2.0 * share])
