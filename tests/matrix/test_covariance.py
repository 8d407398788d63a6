import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.matrix import (
    SingularMatrixError,
    covariance,
    density_matrix,
    full_precision,
    full_precision_product,
    gram,
    low_rank_log,
    matrix_entropy,
    matrix_log,
    shrink,
)

light = settings(max_examples=30, deadline=None)


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@given(n=st.integers(1, 8), d=st.integers(1, 5), seed=st.integers(0, 10_000))
@light
def test_agrees_with_numpy(n, d, seed):
    X, Y = rows(n, d, seed=seed), rows(n, 3, seed=seed + 1)
    counts = torch.randint(1, 5, (n,), generator=torch.Generator().manual_seed(seed))
    plain = np.cov(X.numpy().T, bias=True).reshape(d, d)
    assert np.allclose(covariance(X).numpy(), plain, rtol=0, atol=1e-13)
    weighted = np.cov(X.numpy().T, ddof=0, fweights=counts.numpy()).reshape(d, d)
    assert np.allclose(covariance(X, weights=counts).numpy(), weighted, rtol=0, atol=1e-13)
    joint = np.cov(np.hstack([X.numpy(), Y.numpy()]).T, bias=True)
    assert np.allclose(covariance(X, Y).numpy(), joint[:d, d:], rtol=0, atol=1e-13)


def test_second_moment_and_normalised_rows():
    X = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert torch.allclose(covariance(X, center=False), X.mT @ X / 3)
    unit = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(covariance(X, normalize=True), covariance(unit))


def test_zero_row_has_a_zero_gradient():
    X = rows(4, 3)
    X[1] = 0
    X.requires_grad_()
    (covariance(X, normalize=True) * rows(3, 3, seed=5)).sum().backward()
    assert torch.isfinite(X.grad).all()
    assert X.grad[1].abs().max() == 0
    assert X.grad[0].abs().max() > 0


@given(
    n=st.integers(1, 6),
    d=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    center=st.booleans(),
    normalize=st.booleans(),
    weighted=st.booleans(),
)
@light
def test_gram_has_the_spectrum_of_the_covariance(n, d, seed, center, normalize, weighted):
    X = rows(n, d, seed=seed)
    weights = torch.arange(n, dtype=torch.float64) if weighted and n > 1 else None
    options = {"center": center, "normalize": normalize, "weights": weights}
    small = min(n, d)
    from_rows = torch.linalg.eigvalsh(gram(X, **options))[-small:]
    from_columns = torch.linalg.eigvalsh(covariance(X, **options))[-small:]
    assert torch.allclose(from_rows, from_columns, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("function", [covariance, gram])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_once_and_twice(function, normalize):
    X = rows(2, 4, 3).requires_grad_()
    weights = torch.tensor([0.5, 1.0, 0.2, 2.0], dtype=torch.float64, requires_grad=True)

    def run(Z, w):
        return function(Z, normalize=normalize, weights=w)

    assert torch.autograd.gradcheck(run, (X, weights))
    assert torch.autograd.gradgradcheck(run, (X, weights))


def test_zero_weights_drop_rows_with_finite_gradients():
    X = rows(4, 3)
    weights = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.allclose(covariance(X, weights=weights), covariance(X[::2], weights=weights[::2]))
    gram(X, weights=weights).sum().backward()
    assert torch.isfinite(weights.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rows_are_summed_in_float32(dtype):
    X = rows(64, 8, dtype=dtype)
    C = covariance(X)
    assert C.dtype == torch.float32
    # float32 sums of 64 terms of size 1: 64·eps at the very most.
    assert (C - covariance(X.double())).abs().max() < 64 * torch.finfo(torch.float32).eps
    # The control: the same in the low precision is off by far more.
    low = X - X.mean(0)
    assert (low.mT @ low / 64 - C).abs().max() > 10 * 64 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast_changes_nothing(backward_inside):
    X, W = rows(32, 8, dtype=torch.float32), rows(8, 8, seed=1, dtype=torch.float32)

    def run(enabled):
        Z = X.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            C = covariance(Z)
            loss = (C * W).sum() + (gram(Z) ** 2).sum() + (low_rank_log(Z[:4], 0.5) * W).sum()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        return C.detach(), Z.grad

    for plain, under in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, under)


def test_full_precision_restores_the_settings():
    A = torch.eye(2)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with full_precision(A):
                assert (A @ A).dtype == torch.float32
                if hasattr(torch.backends.mkldnn, "matmul"):
                    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            assert (A @ A).dtype == torch.bfloat16
            assert full_precision_product(A, A).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_non_contiguous_and_batched_rows():
    X = rows(3, 5, 4)
    assert torch.allclose(covariance(X)[1], covariance(X[1]))
    transposed = X.mT.contiguous().mT
    assert torch.allclose(covariance(transposed), covariance(X), rtol=0, atol=1e-15)
    assert covariance(X[:0]).shape == (0, 4, 4)


def test_result_is_symmetric_to_the_last_bit():
    C = covariance(rows(1000, 33, dtype=torch.float32))
    assert torch.equal(C, C.mT)


@given(size=st.integers(1, 6), seed=st.integers(0, 1000), shrinkage=st.floats(0, 0.99))
@light
def test_shrink_keeps_the_trace_of_a_density(size, seed, shrinkage, random_psd):
    A = random_psd(size, seed)
    A = A / torch.trace(A)
    B = shrink(A, shrinkage)
    assert torch.trace(B).item() == pytest.approx(1, abs=1e-14)
    low, mixed = torch.linalg.eigvalsh(A), torch.linalg.eigvalsh(B)
    assert torch.allclose(mixed, (1 - shrinkage) * low + shrinkage / size, rtol=0, atol=1e-14)


def test_density_matrix():
    X = torch.tensor([[2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    rho = density_matrix(X, weights, shrinkage=0.2)
    assert torch.allclose(rho, torch.tensor([[0.7, 0.0], [0.0, 0.3]], dtype=torch.float64))
    assert torch.trace(density_matrix(rows(9, 4))).item() == pytest.approx(1, abs=1e-14)
    # One direction only: a pure state, whose entropy is 0 (+ the trace).
    assert matrix_entropy(density_matrix(X[:1].expand(4, 2))).item() == pytest.approx(1, abs=1e-12)
    padded = torch.cat([X, torch.zeros(1, 2, dtype=torch.float64)])
    assert torch.allclose(density_matrix(padded, torch.tensor([3.0, 1.0, 0.0]), 0.2), rho)


@pytest.mark.parametrize("shape", [(2, 6), (5, 6), (6, 6), (9, 4), (1, 3)])
@pytest.mark.parametrize("shift", [1.0, 1e-3])
def test_low_rank_log_agrees_with_the_dense_one(shape, shift):
    X = rows(2, *shape)
    dense = matrix_log(X.mT @ X + shift * torch.eye(shape[1], dtype=torch.float64))
    # The dense way is the less accurate one: eps·κ = 2e-16·(30/1e-3).
    assert torch.allclose(low_rank_log(X, shift), dense, rtol=0, atol=1e-11)


DEGENERATE = {
    "generic": rows(3, 5),
    "equal_rows": rows(1, 5).expand(3, 5).contiguous(),
    "one_zero_row": torch.cat([rows(2, 5), torch.zeros(1, 5, dtype=torch.float64)]),
    "zero": torch.zeros(2, 4, dtype=torch.float64),
    "orthonormal": torch.eye(3, 5, dtype=torch.float64),
    "square": rows(3, 3),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_low_rank_log_gradcheck(name):
    X = DEGENERATE[name].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda Z: low_rank_log(Z, 0.3), (X,))


@pytest.mark.parametrize("shift", [1e-2, 1e-6])
def test_low_rank_log_gradient_agrees_with_the_dense_one(shift):
    X, W = rows(4, 9), rows(9, 9, seed=1)
    X[3] = X[2] + 1e-7 * X[3]
    through_gram, dense = X.clone().requires_grad_(), X.clone().requires_grad_()
    (low_rank_log(through_gram, shift) * W).sum().backward()
    A = dense.mT @ dense + shift * torch.eye(9, dtype=torch.float64)
    (matrix_log(A, validate=False) * W).sum().backward()
    # ‖gradient‖ is about ‖X‖/shift, and the dense A knows its small eigenvalues to eps·‖A‖/shift = 7e-9 at 1e-6.
    error = (through_gram.grad - dense.grad).abs().max() / dense.grad.abs().max()
    assert error < 1e-14 / shift


def test_low_rank_log_resolves_a_shift_that_the_sum_would_round_away():
    """The point of the Gram side: log s to the last digits, where sI + XᵀX as one matrix is singular."""
    X = rows(2, 6)
    outside = torch.linalg.qr(X.mT, mode="complete")[0][:, 2:]
    log = outside.mT @ low_rank_log(X, 1e-30) @ outside
    expected = torch.tensor(1e-30, dtype=torch.float64).log() * torch.eye(4, dtype=torch.float64)
    assert torch.allclose(log, expected, rtol=0, atol=1e-11)
    with pytest.raises(SingularMatrixError):
        matrix_log(X.mT @ X + 1e-30 * torch.eye(6, dtype=torch.float64))


def test_low_rank_log_second_derivative_is_refused():
    X = rows(2, 4).requires_grad_()
    (first,) = torch.autograd.grad(low_rank_log(X, 1.0).sum(), X, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(X.sum() + first.square().sum(), X)
