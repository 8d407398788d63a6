"""Means of the parts of the loss and the rank of the hidden states: the same numbers as naively, and no waiting for them."""

import pytest
import torch
from accelerate import Accelerator

from helpers.device_calls import DeviceCalls, fake_device
from mce_llm.lm.observation import BatchShape
from mce_llm.lm.patched_call import LossParts
from mce_llm.lm.training.meters import HiddenMeter, LossMeter

CPU = torch.device("cpu")


def parts(ce, labels, matrix=None, **more):
    matrix = None if matrix is None else torch.tensor(matrix)
    return LossParts(torch.tensor(ce), matrix, labels, more.pop("details", {}), BatchShape(1, 1, 1), **more)


def means(meter):
    return meter.means_and_reset(Accelerator(cpu=True))


def test_each_mean_is_over_the_labels_of_the_forwards_that_had_it():
    meter = LossMeter(CPU)
    meter.add(parts(6.0, 3, matrix=3.0, details={"tail_mass": torch.tensor(0.5)}))
    meter.add(parts(2.0, 1, router_sum=torch.tensor(0.25, dtype=torch.bfloat16)))
    meter.add(parts(0.0, 0, matrix=0.0))
    assert means(meter) == {"ce_loss": 2.0, "mce_loss": 1.0, "tail_mass": 0.5, "aux_loss": 0.25}
    assert means(meter) == {}, "it was reset"


def test_sums_are_longer_than_what_is_summed():
    meter = LossMeter(CPU)
    for _ in range(1000):
        meter.add(parts(0.1, 1))
    expected = float(torch.tensor(0.1))
    assert means(meter)["ce_loss"] == pytest.approx(expected, rel=1e-14)  # in float32 it would be off by 1e-6


def test_back_to_the_mark_as_often_as_wanted():
    meter = LossMeter(CPU)
    meter.add(parts(2.0, 1))
    meter.mark()
    for _ in range(2):
        meter.add(parts(torch.nan, 7))
        meter.back()
    meter.add(parts(4.0, 1))
    assert means(meter) == {"ce_loss": 3.0}


def test_nothing_waits_before_something_is_logged():
    with fake_device() as device:
        meter = LossMeter(device)
        ce, router = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.bfloat16)
        with DeviceCalls() as calls:
            meter.mark()
            meter.add(LossParts(ce, ce, 5, {}, BatchShape(1, 1, 1)))
            meter.add(LossParts(ce, ce, 5, {}, BatchShape(1, 1, 1), router_sum=router))
            meter.back()
    assert calls.waits == []
    assert calls.launches[:2] == ["stack", "add"]
    with fake_device() as device, DeviceCalls() as calls:
        torch.zeros(2, device=device).new_tensor([5.0, 5.0])
    assert calls.waits == ["_to_copy"], "a copy to the device would be seen"


def rank_with_vectors(states):
    """Effective rank by the eigen-decomposition of the covariance on the CPU, in float64."""
    states = states.double()
    covariance = torch.cov(states.T, correction=0)
    shares = torch.linalg.eigh(covariance).eigenvalues.clamp_min(0)
    shares = shares / shares.sum()
    return torch.special.entr(shares).sum().exp().item()


@pytest.mark.parametrize(
    ("dtype", "mean", "tolerance"),
    [
        (torch.float32, 0.0, 1e-6),
        (torch.bfloat16, 0.0, 1e-6),  # the products of bfloat16 numbers are exact in float32
        # Rounding a state to float32 is 4e-6 of the largest spread, of which the smallest is a thousandth.
        (torch.float32, 100.0, 1e-4),
    ],
)
def test_effective_rank_of_what_was_seen(dtype, mean, tolerance):
    torch.manual_seed(0)
    spread = torch.logspace(0, -3, 96)
    states = (torch.randn(700, 96) * spread + mean).to(dtype)
    meter = HiddenMeter()
    for batch in states.split(64):
        meter.add(batch)
    got = meter.effective_rank(Accelerator(cpu=True))
    assert got == pytest.approx(rank_with_vectors(states), rel=tolerance)


def test_a_device_without_float64_or_eigenvalues(monkeypatch):
    """What MPS would be given: moments in float32, and the spectrum on the CPU."""
    monkeypatch.setattr("mce_llm.lm.training.meters.exact_dtype", lambda _: torch.float32)
    torch.manual_seed(0)
    states = torch.randn(700, 96) * torch.logspace(0, -3, 96)
    meter = HiddenMeter()
    for batch in states.split(64):
        meter.add(batch)
    assert meter._moments.dtype == torch.float32
    assert meter.effective_rank(Accelerator(cpu=True)) == pytest.approx(rank_with_vectors(states), rel=1e-4)


def test_no_rank_without_two_different_states():
    meter = HiddenMeter()
    assert meter.effective_rank(Accelerator(cpu=True)) is None
    meter.add(torch.ones(1, 4))
    assert meter.effective_rank(Accelerator(cpu=True)) is None
    meter.add(torch.ones(3, 4))
    assert meter.effective_rank(Accelerator(cpu=True)) is None
