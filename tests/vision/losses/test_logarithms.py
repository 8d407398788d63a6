"""The exact logarithm against scipy's, and the polynomial arithmetic against autograd and plain powers."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.vision.losses import MatrixSSLLoss, MECLoss
from mce_llm.vision.losses.logarithms import second_log_difference
from mce_llm.vision.losses.polynomial import MatrixPowers, derivative, log_series
from mce_llm.vision.losses.products import symmetric_product


def random_matrix(size, seed, symmetric=False):
    A = (
        torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        / size**0.5
    )
    return (A + A.T) / 2 if symmetric else A


@pytest.mark.parametrize("form", ["gram", "dim"])
@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("m", "d"), [(4, 9), (7, 7), (12, 5)])
def test_exact_logarithm_is_scipys(views, m, d, mu, form):
    rows = views(m, d, seed=m)
    loss = MatrixSSLLoss(gamma=0.7, lam=1.2, mu=mu, log="exact", form=form)
    parts = loss.components(*rows)
    uniformity = alignment = trace = 0.0
    z1, z2, p1, p2 = (F.normalize(row.detach()) - F.normalize(row.detach()).mean(0) for row in rows)
    for P, Z in ((p2, z1), (p1, z2)):
        P, Z = P.numpy(), Z.numpy()
        shift = mu * np.eye(d)
        log_Q = scipy.linalg.logm(P.T @ Z / m + shift)
        uniformity -= 1.2 * np.trace(log_Q).real / 2
        alignment -= 0.7 * np.trace((P.T @ P / m + shift) @ scipy.linalg.logm(Z.T @ Z / m + shift)) / 2
        trace += 0.7 * np.trace(Z.T @ Z / m + shift) / 2
    assert parts["uniformity"].item() == pytest.approx(uniformity, rel=1e-10)
    assert parts["alignment"].item() == pytest.approx(alignment, rel=1e-10)
    assert parts["trace"].item() == pytest.approx(trace, rel=1e-10)


@pytest.mark.parametrize("mu", [0.6, 1.0, 1.4])
def test_the_series_comes_to_the_exact_logarithm(views, value_and_gradients, mu):
    """What is left falls like radiusᵏ/k; the radius here is about 0.6."""
    rows = views(40, 12)
    exact = value_and_gradients(MatrixSSLLoss(mu=mu, log="exact"), rows)
    errors = [
        float(abs(value_and_gradients(MatrixSSLLoss(mu=mu, order=order), rows)[0] - exact[0]))
        for order in (4, 12, 48)
    ]
    assert errors[0] > 10 * errors[1]
    series = value_and_gradients(MatrixSSLLoss(mu=mu, order=48), rows)
    for ours, truth in zip(series, exact, strict=True):
        assert float((ours - truth).norm() / truth.norm()) < 1e-8


def test_exact_gradients_where_eigenvalues_meet(value_and_gradients):
    """Orthogonal rows: all eigenvalues of S but one are equal, where differentiating eigh would give NaN."""
    base = torch.linalg.qr(
        torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )[0]
    z1, z2 = (base.T.clone().requires_grad_() for _ in range(2))
    p = base.T.clone()
    gram = value_and_gradients(MatrixSSLLoss(log="exact", form="gram", lam=0.3), [z1, z2, p, p])
    dim = value_and_gradients(MatrixSSLLoss(log="exact", form="dim", lam=0.3), [z1, z2, p, p])
    for ours, theirs in zip(gram, dim, strict=True):
        assert ours.isfinite().all()
        assert torch.allclose(ours, theirs, atol=1e-12)


@given(
    x=st.one_of(st.just(0.0), st.floats(1e-12, 1e3)),
    y=st.one_of(st.just(0.0), st.floats(1e-12, 1e3)),
    mu=st.floats(1e-3, 10),
)
@settings(max_examples=60, deadline=None)
def test_second_divided_difference(x, y, mu):
    """Against 60 digits: five digits are left to cancellation at the border of the series (0.02·μ)."""
    ours = float(second_log_difference(*torch.tensor([[x], [y]], dtype=torch.float64), mu))
    with localcontext(prec=60):
        base = Decimal(mu)
        points = sorted({base, Decimal(x) + base, Decimal(y) + base})

        def first(a, b):
            return 1 / a if a == b else (a.ln() - b.ln()) / (a - b)

        if len(points) == 3:
            truth = (first(points[1], points[2]) - first(points[0], points[1])) / (points[2] - points[0])
        elif len(points) == 2:  # one of them counts twice
            double = points[1] if x == y else base
            (single,) = (point for point in points if point != double)
            truth = (first(single, double) - 1 / double) / (single - double)
        else:
            truth = -1 / (2 * base**2)
    assert ours == pytest.approx(float(truth), rel=1e-11)


@given(order=st.integers(1, 20), mu=st.floats(0.05, 1.95), s=st.floats(-0.5, 0.5))
@settings(max_examples=40, deadline=None)
def test_series_as_a_polynomial(order, mu, s):
    direct = sum((-1) ** (i + 1) * (s + mu - 1) ** i / i for i in range(1, order + 1))
    powers = sum(c * s**j for j, c in enumerate(log_series(order, mu)))
    assert powers == pytest.approx(direct, rel=1e-9, abs=1e-9 * (1 + 1.45**order))


def test_series_at_one():
    assert log_series(4, 1.0) == pytest.approx([0, 1, -1 / 2, 1 / 3, -1 / 4])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("degree", range(8))
def test_polynomials_and_traces(degree, symmetric):
    A = random_matrix(6, degree, symmetric)
    powers = MatrixPowers(A, degree, symmetric=symmetric)
    coefficients = [0.3 - 0.7 * j for j in range(degree + 1)]
    direct = sum(c * torch.linalg.matrix_power(A, j) for j, c in enumerate(coefficients))
    assert torch.allclose(powers.polynomial(coefficients), direct, atol=1e-12)
    for j, trace in enumerate(powers.traces(degree), 1):
        assert torch.allclose(trace, torch.linalg.matrix_power(A, j).trace(), atol=1e-12)
    radius = torch.linalg.eigvals(A).abs().max()
    assert powers.norm_bound() >= radius * (1 - 1e-12)


@pytest.mark.parametrize("degree", range(1, 10))
def test_derivative_of_a_polynomial(degree):
    S, W = random_matrix(5, 1, True), random_matrix(5, 2, True)
    coefficients = [9.0] + [(-1) ** k / k for k in range(1, degree + 1)]
    leaf = S.clone().requires_grad_()
    direct = sum(c * (W * torch.linalg.matrix_power(leaf, k)).sum() for k, c in enumerate(coefficients))
    (wanted,) = torch.autograd.grad(direct, leaf)
    found = derivative(coefficients, S, W)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert torch.equal(found, found.T)


def test_a_constant_has_no_derivative():
    assert derivative([3.0], random_matrix(3, 1, True), random_matrix(3, 2, True)).abs().max() == 0


@pytest.mark.parametrize("size", [3, 511, 512, 641])
def test_symmetric_products(size):
    A = torch.randn(size, 20, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    found = symmetric_product(A, A.T)
    assert torch.allclose(found, A @ A.T, atol=1e-12)
    assert size < 512 or torch.equal(found, found.T)


def test_mec_exact_is_scipys(views):
    rows = views(6, 9)
    parts = MECLoss(distortion=20.0, log="exact").components(*rows)
    z1, z2, p1, p2 = (F.normalize(row.detach()).numpy() for row in rows)
    scale = 9 / (6 * 20.0)
    log_det = sum(
        np.trace(scipy.linalg.logm(np.eye(9) + scale * P.T @ Z)).real / 2 for P, Z in ((p2, z1), (p1, z2))
    )
    assert parts["loss"].item() == pytest.approx(-log_det / scale / 6, rel=1e-10)
    assert parts["coding_length"].item() == pytest.approx((6 + 9) / 2 * log_det / 6, rel=1e-10)
