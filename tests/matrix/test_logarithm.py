import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.matrix import log_loewner, matrix_log, matrix_log_frechet

EPS = torch.finfo(torch.float64).eps
# Spectra where differentiating through `eigh` divides by zero, or nearly so.
CLUSTERS = {
    "identity": [1.0, 1.0, 1.0, 1.0],
    "two_pairs": [0.3, 0.3, 2.0, 2.0],
    "tight": [1.0, 1.0 + 1e-13, 1.0 + 1e-9, 3.0],
    "generic": [0.1, 0.5, 1.7, 4.0],
}


# logm judges itself by exp(log A) − A, which grows with the condition number, and warns although it is accurate.
pytestmark = pytest.mark.filterwarnings("ignore:logm result may be inaccurate:RuntimeWarning")


def log_by_scipy(A):
    return torch.from_numpy(scipy.linalg.logm(A.numpy()).real.copy())


def frechet_by_scipy(A, E):
    """The derivative of log at A along E: a block of the log of [[A, E], [0, A]] (Higham, eq. 3.16)."""
    n = len(A)
    block = np.block([[A.numpy(), E.numpy()], [np.zeros((n, n)), A.numpy()]])
    return torch.from_numpy(scipy.linalg.logm(block)[:n, n:].real.copy())


@given(
    logs=st.lists(st.floats(-6, 6), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_agrees_with_scipy(logs, seed, with_spectrum):
    A = with_spectrum([math.exp(x) for x in logs], seed)
    # An eigenvalue is known to eps·λ_max, so its log to eps·κ; 100 covers both programs' constants.
    condition = math.exp(max(logs) - min(logs))
    error = (matrix_log(A) - log_by_scipy(A)).abs().max()
    assert error <= 100 * EPS * condition


@pytest.mark.parametrize("name", CLUSTERS)
def test_gradcheck(name, with_spectrum):
    A = with_spectrum(CLUSTERS[name], 3).requires_grad_()
    # gradcheck steps to asymmetric matrices, which validation refuses; the function reads the symmetric part.
    assert torch.autograd.gradcheck(lambda X: matrix_log(X, validate=False), (A,))


@pytest.mark.parametrize("name", CLUSTERS)
def test_gradient_agrees_with_the_block_formula(name, with_spectrum):
    A = with_spectrum(CLUSTERS[name], 5).requires_grad_()
    W = with_spectrum([1.0, -2.0, 0.5, 3.0], 6)
    (matrix_log(A) * W).sum().backward()
    assert torch.allclose(A.grad, frechet_by_scipy(A.detach(), W), rtol=0, atol=1e-11)


def test_differentiating_through_eigh_is_what_fails():
    """The control: at the identity, the plain way gives no usable gradient."""
    A = torch.eye(4, dtype=torch.float64).requires_grad_()
    values, vectors = torch.linalg.eigh(A)
    ((vectors * values.log()) @ vectors.mT).sum().backward()
    assert not torch.isfinite(A.grad).all()
    B = torch.eye(4, dtype=torch.float64).requires_grad_()
    matrix_log(B).sum().backward()
    assert torch.equal(B.grad, torch.ones(4, 4, dtype=torch.float64))


def test_frechet_along_a_direction(with_spectrum):
    A, E = with_spectrum([0.2, 1.0, 1.0, 5.0], 1), with_spectrum([1.0, 2.0, -1.0, 0.0], 2)
    values, vectors = torch.linalg.eigh(A)
    assert torch.allclose(matrix_log_frechet(values, vectors, E), frechet_by_scipy(A, E), rtol=0, atol=1e-11)


def test_second_derivative_is_refused(random_psd):
    A = random_psd(3, 0).requires_grad_()
    (first,) = torch.autograd.grad(matrix_log(A)[0, 1], A, create_graph=True)
    # A penalty beside another term: a constant first derivative would be wrong without a word.
    penalised = A.square().sum() + first.square().sum()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(penalised, A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loewner_entries_to_the_last_bits(dtype):
    mpmath = pytest.importorskip("mpmath")
    x = torch.tensor([1.0, 1.0, 1.0, 3.0, 1e-3, 1.0, 1e6, 2.0], dtype=dtype)
    y = torch.tensor([1.0, 1.0, 0.5, 2.9, 1e3, 1e-12, 1e-6, 2.1], dtype=dtype)
    y[1] += torch.finfo(dtype).eps
    got = log_loewner(x, y)
    assert torch.equal(got, log_loewner(y, x))
    with mpmath.workdps(50):
        for a, b, value in zip(x.tolist(), y.tolist(), got.tolist(), strict=True):
            a, b = mpmath.mpf(a), mpmath.mpf(b)
            exact = 1 / a if a == b else (mpmath.log(a) - mpmath.log(b)) / (a - b)
            # log1p, two divisions and two subtractions: a few units in the last place.
            assert abs(value / exact - 1) < 6 * torch.finfo(dtype).eps


def test_loewner_of_extreme_numbers_is_finite():
    x = torch.tensor([1.0, 1e30, 1e-38, 3e38])
    y = torch.tensor([1e-38, 1e-30, 1e-38, 1e-38])
    assert torch.isfinite(log_loewner(x, y)).all()


def test_batches(random_psd):
    stack = torch.stack([random_psd(3, seed) for seed in range(6)]).reshape(2, 3, 3, 3)
    logs = matrix_log(stack)
    assert logs.shape == (2, 3, 3, 3)
    for i in range(2):
        for j in range(3):
            assert torch.allclose(logs[i, j], log_by_scipy(stack[i, j]), rtol=0, atol=1e-12)
    assert matrix_log(stack[:0]).shape == (0, 3, 3, 3)


def test_size_one():
    A = torch.tensor([[[2.0]], [[0.5]]], dtype=torch.float64, requires_grad=True)
    log = matrix_log(A)
    assert torch.allclose(log.flatten(), torch.tensor([math.log(2), -math.log(2)], dtype=torch.float64))
    log.sum().backward()
    assert torch.allclose(A.grad.flatten(), torch.tensor([0.5, 2.0], dtype=torch.float64))


def test_non_contiguous_input(random_psd):
    A = random_psd(4, 0)
    padded = torch.zeros(8, 8, dtype=torch.float64)
    padded[::2, ::2] = A
    assert torch.equal(matrix_log(padded[::2, ::2]), matrix_log(A))


def test_rounding_asymmetry_is_accepted_and_averaged(random_psd):
    A = random_psd(4, 0)
    A[0, 1] *= 1 + 4 * EPS
    assert torch.allclose(matrix_log(A), matrix_log((A + A.mT) / 2), rtol=0, atol=1e-14)


@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast_changes_nothing(backward_inside, random_psd):
    A, W = random_psd(16, 0).float(), random_psd(16, 1).float()

    def gradient(enabled):
        X = A.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            log = matrix_log(X)
            loss = (log * W).sum()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        return log.detach(), X.grad

    for plain, under in zip(gradient(False), gradient(True), strict=True):
        assert under.dtype == torch.float32
        assert torch.equal(plain, under)


@pytest.mark.parametrize(
    ("condition", "limit"),
    # eps·κ/|log λ_min| is 2.6e-6, 1.3e-4 and 8.6e-3: the error of the smallest eigenvalue over the largest log;
    # the limits are those figures, and a method that lost one more digit would break them.
    [(1e2, 2.6e-6), (1e4, 1.3e-4), (1e6, 8.6e-3)],
)
def test_float32_error(condition, limit, with_spectrum):
    spectrum = torch.logspace(0, -math.log10(condition), 32, dtype=torch.float64).tolist()
    A = with_spectrum(spectrum, 7).float()
    reference = matrix_log(A.double())
    error = (matrix_log(A).double() - reference).abs().max() / reference.abs().max()
    assert 0 < error <= limit
