"""The logarithm of tridiagonal matrices by poles, against eigendecompositions in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from mce_llm.matrix import lanczos, tridiagonal_log
from mce_llm.matrix.tridiagonal_poles import log_poles

APPROXIMATION = 3e-6


def tridiagonals(tokens, order, smallest, seed=0, decay=6.0, dtype=torch.float64):
    """(α, β, ‖x‖²) of matrices with a spectrum from `smallest` to 1, by Lanczos in float64."""
    generator = torch.Generator().manual_seed(seed)
    size = order + 12
    spectrum = (
        smallest
        + (1 - smallest) * torch.rand(tokens, size, generator=generator, dtype=torch.float64) ** decay
    )
    rotation = torch.linalg.qr(torch.randn(tokens, size, size, generator=generator, dtype=torch.float64)).Q
    Q = rotation @ (spectrum.unsqueeze(-1) * rotation.mT)
    start = torch.randn(tokens, size, generator=generator, dtype=torch.float64)
    run = lanczos(lambda v: (Q @ v.unsqueeze(-1)).squeeze(-1), start, order)
    return run.alphas.to(dtype), run.betas.to(dtype), run.norm2.to(dtype)


def errors(given_, smallest):
    """Largest relative errors of values and cores in float32 by poles, in units of what rounding of T itself does.

    The latter are those of float64 eigenvalues of the same matrices, and eps·κ(T) beside the approximation's own error.
    """
    alphas, betas, norm2 = (t.float() for t in given_)
    ours = tridiagonal_log(alphas, betas, norm2, smallest, largest=1.0)
    exact = tridiagonal_log(alphas.double(), betas.double(), norm2.double(), smallest)
    T = sum(torch.diag_embed(t.double(), k) for t, k in ((alphas, 0), (betas, 1), (betas, -1)) if t.shape[1])
    theta = torch.linalg.eigvalsh(T).clamp_min(smallest)
    unit = APPROXIMATION + torch.finfo(torch.float32).eps * theta[:, -1] / theta[:, 0]
    value = (ours.value - exact.value).abs() / (exact.value.abs() + norm2)
    core = (ours.core - exact.core).flatten(1).norm(dim=1) / exact.core.flatten(1).norm(dim=1)
    if exact.previous is not None:
        value = torch.maximum(value, (ours.previous - exact.previous).abs() / (exact.previous.abs() + norm2))
    return (value / unit).max().item(), (core / unit).max().item()


@given(
    order=st.integers(1, 16),
    smallest=st.sampled_from([0.3, 0.05 / 64, 0.05 / 4096, 0.05 / 8192, 1e-3 / 4096]),
    decay=st.sampled_from([1.0, 6.0, 40.0]),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_eigendecomposition(order, smallest, decay, seed):
    value, core = errors(tridiagonals(8, order, smallest, seed, decay), smallest)
    assert value < 1
    assert core < 1


def test_is_closer_than_float32_eigenvalues_are():
    """What it replaces: the derivative from float32 eigenvectors."""
    smallest = 0.05 / 4096
    alphas, betas, norm2 = (t.float() for t in tridiagonals(200, 8, smallest, decay=20.0))
    exact = tridiagonal_log(alphas.double(), betas.double(), norm2.double(), smallest).core
    off = [
        (tridiagonal_log(alphas, betas, norm2, smallest, largest=largest).core - exact).norm() / exact.norm()
        for largest in (1.0, None)
    ]
    assert off[0] < off[1]


def test_beyond_the_end_of_the_space_nothing_grows():
    """Rows that rounding has added have couplings that no positive matrix has; a frame of 3 in a space of 20."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.randn(6, 3, 20, generator=generator)
    frame = frame / frame.norm(dim=-1, keepdim=True)
    gram, weights = frame @ frame.mT, torch.full((6, 3), 0.3)
    start = torch.zeros(6, 3)
    start[:, 0] = 1
    smallest = 0.05 / 20
    run = lanczos(lambda c, p: torch.addcmul(smallest * c, weights, p), start, 24, gram=gram, breakdown=1e-12)
    ours = tridiagonal_log(run.alphas, run.betas, run.norm2, smallest, largest=1.0)
    exact = tridiagonal_log(
        *(t[:, :m].double() for t, m in ((run.alphas, 3), (run.betas, 2))), run.norm2.double(), smallest
    )
    assert torch.isfinite(ours.core).all()
    torch.testing.assert_close(ours.value.double(), exact.value, rtol=1e-5, atol=1e-5)
    shown = (ours.core.double() @ run.duals.double()).mul(run.duals.double()).sum(1)
    wanted = (exact.core @ run.duals[:, :3].double()).mul(run.duals[:, :3].double()).sum(1)
    torch.testing.assert_close(shown, wanted, rtol=1e-4, atol=1e-5)


def test_rows_that_are_frozen_empty_or_not_a_number():
    smallest = 0.01
    alphas = torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [0.2, 0.4, 0.3]])
    betas = torch.tensor([[0.1, 0.0], [0.0, 0.0], [0.1, 0.1]])
    norm2 = torch.tensor([1.0, 0.0, torch.nan])
    ours = tridiagonal_log(alphas, betas, norm2, smallest, largest=1.0)
    exact = tridiagonal_log(alphas[:1, :2].double(), betas[:1, :1].double(), norm2[:1].double(), smallest)
    assert ours.value[0] == pytest.approx(exact.value.item(), rel=1e-6)
    torch.testing.assert_close(ours.core[0, :2, :2].double(), exact.core[0], rtol=1e-6, atol=1e-6)
    assert ours.core[0, 2].abs().max() == 0
    assert ours.value[1] == 0
    assert ours.value[2].isnan()


@pytest.mark.parametrize(("smallest", "largest"), [(1e-9, 1.0), (0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_no_poles_for_an_interval_that_is_too_wide_or_none(smallest, largest):
    assert log_poles(smallest, largest) is None


def test_a_wide_interval_takes_the_eigendecomposition():
    smallest = 2.0**-23 / 4096
    given_ = [t.float() for t in tridiagonals(5, 6, 1e-4)]
    with_bound = tridiagonal_log(*given_, smallest, largest=1.0)
    without = tridiagonal_log(*given_, smallest)
    assert torch.equal(with_bound.value, without.value)
    assert torch.equal(with_bound.core, without.core)


def test_float64_keeps_all_its_digits():
    given_ = tridiagonals(5, 6, 1e-3)
    assert torch.equal(tridiagonal_log(*given_, 1e-3, largest=1.0).core, tridiagonal_log(*given_, 1e-3).core)


def test_a_dry_run_leaves_no_fake_tensors_behind():
    poles = log_poles(0.123, 1.0)
    for _ in range(2):
        with FakeTensorMode():
            poles.on(torch.empty(2, dtype=torch.float32))
    found = poles.on(torch.empty(2, dtype=torch.float32))
    assert type(found) is torch.Tensor
    assert (found > 0).all()


@pytest.mark.parametrize("smallest", [0.5, 0.05 / 64, 0.05 / 8192, 2e-7])
def test_poles_give_value_and_slope_of_the_logarithm(smallest):
    poles = log_poles(smallest, 1.0)
    shifts, weights, residues = poles.on(torch.empty(1, dtype=torch.float64), 32)
    assert shifts.shape == (32,)
    points = torch.logspace(math.log10(smallest), 0, 999, dtype=torch.float64).unsqueeze(-1)
    value = (weights * (points - 1) / (points + shifts)).sum(-1) + poles.constant
    slope = (residues / (points + shifts).square()).sum(-1)
    assert (value - points.squeeze(-1).log()).abs().max() < 5e-7
    assert (slope * points.squeeze(-1) - 1).abs().max() < 5e-7


def test_upper_ends_that_change_a_little_share_their_poles():
    """The longest row of a table that is trained: poles for each step would be as many tensors on its device."""
    assert log_poles(1e-3, 2.1) is log_poles(1e-3, 2.2)
    assert log_poles(1e-3, 1.0) is not log_poles(1e-3, 1.1)
