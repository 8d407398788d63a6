import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.matrix import ZeroMatrixError, covariance, effective_rank, effective_rank_of_rows, matrix_entropy

light = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_identity_has_full_rank(size):
    assert effective_rank(3e5 * torch.eye(size, dtype=torch.float64)).item() == pytest.approx(size, rel=1e-14)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_projector_has_its_rank(rank, with_spectrum):
    P = with_spectrum([2.0] * rank + [0.0] * (5 - rank), 0)
    assert effective_rank(P).item() == pytest.approx(rank, rel=1e-12)


@given(size=st.integers(1, 6), seed=st.integers(0, 10_000), log_scale=st.floats(-100, 100))
@light
def test_is_the_exponential_of_the_entropy_of_the_normalised_matrix(size, seed, log_scale, random_psd):
    A = random_psd(size, seed)
    rank = effective_rank(A * 10**log_scale)
    assert torch.allclose(rank, (matrix_entropy(A / torch.trace(A)) - 1).exp(), rtol=1e-12, atol=0)
    assert 1 - 1e-12 <= rank <= size + 1e-12


@pytest.mark.parametrize("spectrum", [[1.0, 1.0, 1.0], [0.5, 0.5, 2.0], [0.1, 1.0, 3.0]])
def test_gradcheck(spectrum, with_spectrum):
    A = with_spectrum(spectrum, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: effective_rank(X, validate=False), (A,))


def test_gradient_at_a_singular_matrix_is_finite(with_spectrum):
    A = with_spectrum([0.0, 0.0, 1.0, 2.0], 0).requires_grad_()
    effective_rank(A).backward()
    assert torch.isfinite(A.grad).all()
    # Mixing in a missing direction raises the effective rank: the derivative must say so.
    assert torch.trace(A.grad) > 0


@given(
    rows=st.integers(2, 8),
    columns=st.integers(1, 8),
    seed=st.integers(0, 10_000),
    center=st.booleans(),
)
@light
def test_of_rows_is_that_of_the_covariance(rows, columns, seed, center):
    X = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    by_singular_values = torch.linalg.svdvals(X - X.mean(0) if center else X).square()
    shares = by_singular_values / by_singular_values.sum()
    expected = torch.exp(-torch.xlogy(shares, shares).sum())
    got = effective_rank_of_rows(X, center=center)
    assert torch.allclose(got, expected, rtol=1e-10, atol=0)
    assert torch.allclose(got, effective_rank(covariance(X, center=center)), rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
def test_of_rows_gradcheck_and_batches(shape):
    X = torch.randn(
        2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    # Uncentred: centring leaves a zero eigenvalue, whose clamped gradient is not the one-sided limit.
    assert torch.autograd.gradcheck(lambda Y: effective_rank_of_rows(Y, center=False), (X,))
    batched = effective_rank_of_rows(X)
    assert torch.allclose(batched[1], effective_rank_of_rows(X[1]), rtol=1e-12, atol=0)


def test_of_centred_rows_gradient():
    """The null direction that centring leaves does not reach the rows."""
    X = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(effective_rank_of_rows, (X,))


def test_collapse_is_seen():
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(64, 16, generator=generator)
    collapsed = (
        torch.randn(64, 1, generator=generator) * torch.randn(1, 16, generator=generator) + 1e-4 * spread
    )
    assert effective_rank_of_rows(spread) > 12
    assert effective_rank_of_rows(collapsed) < 1.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_are_refused_though_centring_leaves_rounding(dtype):
    row = 10 * torch.randn(1, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    with_rounding = 0
    for count in range(2, 20):
        X = row.expand(count, 8)
        with_rounding += bool((X - X.mean(0)).any())
        with pytest.raises(ZeroMatrixError, match="not all equal"):
            effective_rank_of_rows(X)
        assert effective_rank_of_rows(X, center=False).item() == pytest.approx(1, abs=1e-4)
    assert with_rounding > 3  # otherwise only exact zeros were seen


def test_bfloat16_rows_are_read_in_float32():
    X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(effective_rank_of_rows(X), effective_rank_of_rows(X.float()))
    with pytest.raises(ZeroMatrixError, match="not all equal"):
        effective_rank_of_rows(X[:1].expand(6, 4))


def test_zero_matrix_is_refused_and_counted():
    stack = torch.stack([torch.eye(2), torch.zeros(2, 2), torch.zeros(2, 2)])
    with pytest.raises(ZeroMatrixError, match=r"2 of 3 matrices .*\(1,\)"):
        effective_rank(stack)
    assert torch.isnan(effective_rank(stack, validate=False)).tolist() == [False, True, True]
