"""The guard of the Taylor series: silent where it converges, clear where it does not."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.vision.losses import (
    LossSettingsError,
    MatrixSSLLoss,
    MECLoss,
    TaylorDivergenceError,
)
from mce_llm.vision.losses.convergence import measured_radius


def collapsed(m, d, noise, seed=0):
    """Rows along ± one direction, with a little noise: C_zz has one eigenvalue near 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(m)[:m, None]
    line = sign * F.normalize(draw(d), dim=0)
    return [(line + noise * draw(m, d)).requires_grad_(index < 2) for index in range(4)]


def radius_of(rows, mu):
    """The largest spectral radius of Q − I over the four matrices, from eigenvalues."""
    z1, z2, p1, p2 = (F.normalize(row.detach()) - F.normalize(row.detach()).mean(0) for row in rows)
    m, d = z1.shape
    shift = (mu - 1) * torch.eye(d, dtype=z1.dtype)
    found = [torch.linalg.eigvals(a.T @ z / m + shift) for p, z in ((p2, z1), (p1, z2)) for a in (p, z)]
    return float(torch.cat(found).abs().max())


@given(
    m=st.integers(2, 24),
    d=st.integers(2, 24),
    noise=st.floats(1e-6, 3),
    mu=st.sampled_from([0.3, 0.7, 1.0, 1.2, 1.7, 1.95]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_it_raises_exactly_where_the_radius_is_above_one(m, d, noise, mu, seed):
    rows = collapsed(m, d, noise, seed)
    truth = radius_of(rows, mu)
    bound = float(MatrixSSLLoss(mu=mu, on_divergence="ignore").components(*rows)["taylor_radius"])
    assert bound >= truth * (1 - 1e-9)  # certified
    if abs(truth - 1) < 2e-5:  # counts as rounding
        return
    if truth < 1:
        MatrixSSLLoss(mu=mu)(*rows)
    else:
        with pytest.raises(TaylorDivergenceError) as caught:
            MatrixSSLLoss(mu=mu)(*rows)
        # The first matrix that diverges is named, not the worst.
        assert 1 <= caught.value.radius <= truth * (1 + 1e-9)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize(("m", "d"), [(16, 64), (64, 16)])
def test_no_false_alarm_for_the_recipe(m, d, noise):
    """λ = μ = γ = 1: from nearly collapsed rows to plain noise, with and without a common direction."""
    rows = collapsed(m, d, noise)
    assert MatrixSSLLoss()(*rows).isfinite()
    MatrixSSLLoss()(*[row + 5 for row in rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_along_one_line_are_on_the_edge(dtype):
    """Radius 1 to rounding, as two rows after a batch norm have it: log 2 = 1 − 1/2 + 1/3 − … still converges."""
    z = F.normalize(torch.randn(1, 7, generator=torch.Generator().manual_seed(0), dtype=dtype))
    rows = torch.cat([z, -z])
    assert MatrixSSLLoss()(rows, rows, rows, rows).isfinite()


def test_the_bound_settles_the_usual_case_without_eigenvalues(views, monkeypatch):
    def forbidden(*arguments, **named):
        raise AssertionError("measured although the bound suffices")

    monkeypatch.setattr("mce_llm.vision.losses.matrix_ssl.measured_radius", forbidden)
    MatrixSSLLoss()(*views(16, 24))
    MatrixSSLLoss()(*collapsed(16, 24, 0.05))


def test_divergence_names_the_radius_and_the_remedy():
    rows = collapsed(8, 5, 0.05)
    with pytest.raises(
        TaylorDivergenceError,
        match=r"MatrixSSLLoss: .*C_pz \+ \(mu − 1\) I of pair 1 has spectral radius 1\.[0-9]+, the limit is 1"
        r".*mu nearer to 1 \(now 1.4\).*log='exact'.*on_divergence",
    ):
        MatrixSSLLoss(mu=1.4)(*rows)


def test_without_validation_nobody_looks():
    rows = collapsed(8, 5, 0.05)
    assert MatrixSSLLoss(mu=1.4, validate=False)(*rows).isfinite()


SWITCH = (
    r"spectral radius 1\.\d+, and the Taylor series .*this batch and all that follow take the exact logarithm"
)


def test_from_the_first_batch_that_diverges_on_the_logarithm_is_exact(value_and_gradients, views):
    """To the last bit, and for batches that do not diverge too: one run has one scale, but for the batches before."""
    asked, exact = MatrixSSLLoss(mu=1.4, on_divergence="exact"), MatrixSSLLoss(mu=1.4, log="exact")
    rows, spread = collapsed(8, 5, 0.05), views(40, 30)
    assert torch.equal(asked(*spread), MatrixSSLLoss(mu=1.4)(*spread))
    assert asked.components(*spread)["exact_logarithm"] == 0
    with pytest.warns(UserWarning, match=SWITCH):
        first = asked.components(*rows)
    assert first["taylor_radius"] > 1
    assert first["exact_logarithm"] == 1
    for batch in (rows, spread):
        for ours, theirs in zip(
            value_and_gradients(asked, batch), value_and_gradients(exact, batch), strict=True
        ):
            assert torch.equal(ours, theirs)
    assert "taylor_radius" not in asked.components(*spread)


def test_a_run_that_goes_on_stays_with_the_exact_logarithm(views):
    asked, rows = MatrixSSLLoss(mu=1.4, on_divergence="exact"), views(40, 30)
    with pytest.warns(UserWarning, match=SWITCH):
        asked(*collapsed(8, 5, 0.05))
    again = MatrixSSLLoss(mu=1.4, on_divergence="exact")
    assert not torch.equal(again(*rows), asked(*rows))
    again.load_state_dict(asked.state_dict())
    assert again.logarithm == "exact"
    assert torch.equal(again(*rows), asked(*rows))


def test_only_terms_with_weight_can_diverge():
    """p and z along different directions: C_pz is nearly zero, C_zz is not."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randn(40, 1, generator=generator, dtype=torch.float64).sign()
    other = torch.randn(40, 1, generator=generator, dtype=torch.float64).sign()
    e = torch.eye(4, dtype=torch.float64)
    z, p = sign * e[0], other * e[1]
    assert MatrixSSLLoss(mu=1.3, gamma=0)(z, z, p, p).isfinite()
    with pytest.raises(TaylorDivergenceError, match="C_zz"):
        MatrixSSLLoss(mu=1.3)(z, z, p, p)
    with pytest.raises(TaylorDivergenceError, match="C_zz"):
        MatrixSSLLoss(mu=1.3, lam=0)(z, z, p, p)


def test_mec_beyond_its_radius():
    """The published code goes on; it may be asked not to."""
    rows = collapsed(8, 16, 0.3)
    parts = MECLoss(distortion=1.0).components(*rows)
    assert parts["loss"].isfinite()
    assert parts["taylor_radius"] > 1
    with pytest.raises(TaylorDivergenceError, match=r"λ PᵀZ of pair 1.*larger distortion \(now 1\).*warm-up"):
        MECLoss(distortion=1.0, on_divergence="raise")(*rows)
    with pytest.warns(UserWarning, match=r"λ PᵀZ of pair 1 has spectral radius"):
        exact = MECLoss(distortion=1.0, on_divergence="exact")(*rows)
    assert torch.equal(exact, MECLoss(distortion=1.0, log="exact")(*rows))
    MECLoss(distortion=64.0, on_divergence="raise")(*rows)


@pytest.mark.parametrize("loss", [MatrixSSLLoss, MECLoss])
def test_exact_on_divergence_needs_validation(loss):
    with pytest.raises(LossSettingsError, match="needs validate=true"):
        loss(on_divergence="exact", validate=False)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("m", "d"), [(5, 9), (9, 5)])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_measured_radius(m, d, symmetric, scale):
    generator = torch.Generator().manual_seed(m)
    left = torch.randn(m, d, generator=generator, dtype=torch.float64)
    right = left if symmetric else torch.randn(m, d, generator=generator, dtype=torch.float64)
    matrix = left.T @ right * scale + 0.2 * torch.eye(d, dtype=torch.float64)
    truth = float(torch.linalg.eigvals(matrix).abs().max())
    found = measured_radius(left, right, scale, 0.2, symmetric=symmetric)
    if truth >= 1:
        assert found == pytest.approx(truth, rel=1e-9)
    else:
        assert truth * (1 - 1e-9) <= found < 1


def test_measured_radius_of_zero():
    zero = torch.zeros(3, 5)
    assert measured_radius(zero, zero, 1.0, 0.0) == 0
    assert 0.5 <= measured_radius(zero, zero, 1.0, -0.5) < 1
