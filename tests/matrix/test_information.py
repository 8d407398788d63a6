import math

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.matrix import matrix_cross_entropy, matrix_entropy, matrix_kl_divergence
from mce_llm.matrix.information import scalar_kl

FUNCTIONS_OF_TWO = [matrix_kl_divergence, matrix_cross_entropy]
sizes, seeds = st.integers(1, 6), st.integers(0, 10_000)
light = settings(max_examples=30, deadline=None)


# logm judges itself by exp(log A) − A, which grows with the condition number, and warns although it is accurate.
pytestmark = pytest.mark.filterwarnings("ignore:logm result may be inaccurate:RuntimeWarning")


def block(A, B):
    return torch.block_diag(A, B)


def log_by_scipy(A):
    return torch.from_numpy(scipy.linalg.logm(A.numpy()).real.copy())


@given(size=sizes, seed=seeds)
@light
def test_agree_with_scipy(size, seed, random_psd):
    P, Q = random_psd(size, seed), random_psd(size, seed + 1)
    log_p, log_q = log_by_scipy(P), log_by_scipy(Q)
    entropy = -torch.trace(P @ log_p) + torch.trace(P)
    cross = torch.trace(-P @ log_q + Q)
    # Condition numbers are below 1e3 and values below 1e2: 1e-12 leaves room for scipy's own error.
    assert abs(matrix_entropy(P) - entropy) < 1e-12 * (1 + abs(entropy))
    assert abs(matrix_cross_entropy(P, Q) - cross) < 1e-12 * (1 + abs(cross))
    assert abs(matrix_kl_divergence(P, Q) - (cross - entropy)) < 1e-12 * (1 + abs(cross))


@given(size=sizes, seed=seeds)
@light
def test_cross_entropy_is_entropy_plus_divergence(size, seed, random_psd):
    P, Q = random_psd(size, seed), random_psd(size, seed + 1)
    total = matrix_entropy(P) + matrix_kl_divergence(P, Q)
    assert torch.allclose(matrix_cross_entropy(P, Q), total, rtol=1e-12, atol=1e-12)


@given(size=sizes, seed=seeds, log_step=st.floats(-9, 0))
@light
def test_divergence_is_positive_and_zero_only_at_equality(size, seed, log_step, random_psd):
    P, direction = random_psd(size, seed), random_psd(size, seed + 1)
    direction = direction / direction.norm()
    step = 10**log_step
    assert 0 <= matrix_kl_divergence(P, P) < 1e-28
    divergence = matrix_kl_divergence(P, P + step * direction)
    # Near P it is ½⟨E, D log[P](E)⟩ >= ‖E‖²/(2 λ_max); the quarter allows for the higher terms at step 1.
    assert divergence > 0.25 * step**2 / (torch.linalg.eigvalsh(P)[-1] + step)


@given(size=sizes, seed=seeds, weight=st.floats(0.05, 0.95))
@light
def test_convex_in_the_second_argument(size, seed, weight, random_psd):
    P, Q, R = (random_psd(size, seed + i) for i in range(3))
    mixed = matrix_cross_entropy(P, weight * Q + (1 - weight) * R)
    chord = weight * matrix_cross_entropy(P, Q) + (1 - weight) * matrix_cross_entropy(P, R)
    assert mixed <= chord + 1e-12 * (1 + abs(chord))
    if size > 1:  # Q ≠ R, and −log is strictly convex
        assert mixed < chord


@given(size=sizes, seed=seeds)
@light
def test_minimum_at_equality(size, seed, random_psd):
    P = random_psd(size, seed)
    Q = P.clone().requires_grad_()
    matrix_cross_entropy(P, Q).backward()
    assert Q.grad.abs().max() < 1e-12
    other = random_psd(size, seed + 1)
    assert matrix_cross_entropy(P, P) < matrix_cross_entropy(P, other)


@given(size=sizes, seed=seeds)
@light
def test_invariant_under_a_common_rotation(size, seed, random_psd, orthogonal):
    P, Q, U = random_psd(size, seed), random_psd(size, seed + 1), orthogonal(size, seed)

    def turned(A):
        A = U @ A @ U.mT
        return (A + A.mT) / 2

    assert torch.allclose(matrix_entropy(turned(P)), matrix_entropy(P), rtol=1e-12, atol=1e-12)
    for function in FUNCTIONS_OF_TWO:
        assert torch.allclose(function(turned(P), turned(Q)), function(P, Q), rtol=1e-12, atol=1e-12)
    if size > 1:  # the control: turning one argument alone does change the divergence
        alone = matrix_kl_divergence(turned(P), P)
        assert alone > 1e-9


@given(
    p=st.lists(st.floats(0, 4), min_size=1, max_size=6),
    seed=seeds,
)
@light
def test_diagonal_matrices_give_the_classical_quantities(p, seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.tensor(p, dtype=torch.float64)
    q = torch.rand(len(p), generator=generator, dtype=torch.float64) + 0.01
    P, Q = torch.diag(p), torch.diag(q)
    entropy = sum(x - x * math.log(x) if x > 0 else 0.0 for x in p.tolist())
    cross = sum(-x * math.log(y) + y for x, y in zip(p.tolist(), q.tolist(), strict=True))
    assert matrix_entropy(P).item() == pytest.approx(entropy, rel=1e-12, abs=1e-12)
    assert matrix_cross_entropy(P, Q).item() == pytest.approx(cross, rel=1e-12, abs=1e-12)
    assert matrix_kl_divergence(P, Q).item() == pytest.approx(cross - entropy, rel=1e-11, abs=1e-11)


@given(left=sizes, right=sizes, seed=seeds)
@light
def test_additive_over_blocks(left, right, seed, random_psd):
    P, Q = random_psd(left, seed), random_psd(left, seed + 1)
    R, S = random_psd(right, seed + 2), random_psd(right, seed + 3)
    assert torch.allclose(
        matrix_entropy(block(P, R)), matrix_entropy(P) + matrix_entropy(R), rtol=1e-12, atol=1e-12
    )
    for function in FUNCTIONS_OF_TWO:
        apart = function(P, Q) + function(R, S)
        assert torch.allclose(function(block(P, R), block(Q, S)), apart, rtol=1e-12, atol=1e-12)


SPECTRA = {
    "identity": ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
    "equal_pair": ([0.5, 0.5, 2.0], [0.5, 0.5, 2.0]),
    "clusters": ([1.0, 1.0 + 1e-12, 3.0], [0.2, 0.7, 0.7]),
    "generic": ([0.3, 0.9, 2.0], [0.1, 1.1, 1.9]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("function", FUNCTIONS_OF_TWO)
@pytest.mark.parametrize("same_basis", [True, False])
def test_gradcheck_of_two(function, name, same_basis, with_spectrum):
    p, q = SPECTRA[name]
    P = with_spectrum(p, 0).requires_grad_()
    Q = with_spectrum(q, 0 if same_basis else 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda A, B: function(A, B, validate=False), (P, Q))


@pytest.mark.parametrize("name", SPECTRA)
def test_gradcheck_of_entropy(name, with_spectrum):
    A = with_spectrum(SPECTRA[name][0], 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: matrix_entropy(X, validate=False), (A,))


def test_gradcheck_through_broadcasting(random_psd):
    P = torch.stack([random_psd(2, i) for i in range(3)]).requires_grad_()
    Q = torch.stack([random_psd(2, i + 5) for i in range(2)])[:, None].clone().requires_grad_()
    for function in FUNCTIONS_OF_TWO:
        assert torch.autograd.gradcheck(lambda A, B, f=function: f(A, B, validate=False), (P, Q))


@pytest.mark.parametrize("function", FUNCTIONS_OF_TWO)
def test_broadcasting_equals_the_loop(function, random_psd):
    P = torch.stack([random_psd(3, i) for i in range(4)])
    Q = torch.stack([random_psd(3, i + 9) for i in range(2)])[:, None]
    values = function(P, Q)
    assert values.shape == (2, 4)
    for i in range(2):
        for j in range(4):
            assert torch.allclose(values[i, j], function(P[j], Q[i, 0]), rtol=1e-13, atol=1e-13)
    assert function(P[:0], Q[:1, 0]).shape == (0,)
    assert matrix_entropy(P[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_first_argument(dtype, with_spectrum):
    """0·log 0 is 0 in the value; the unbounded gradient is finite."""
    P = with_spectrum([0.0, 0.0, 2.0], 0).to(dtype).requires_grad_()
    Q = with_spectrum([0.5, 0.5, 1.0], 1).to(dtype).requires_grad_()
    tolerance = 50 * torch.finfo(dtype).eps
    assert matrix_entropy(P).item() == pytest.approx(2 - 2 * math.log(2), abs=tolerance)
    (matrix_entropy(P) + matrix_kl_divergence(P, Q) + matrix_cross_entropy(P, Q)).backward()
    for X in (P, Q):
        assert torch.isfinite(X.grad).all()
        assert X.grad.abs().max() < 200
    total = matrix_entropy(P) + matrix_kl_divergence(P, Q)
    assert torch.allclose(matrix_cross_entropy(P, Q), total, rtol=0, atol=tolerance)


def test_zero_matrix():
    P = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    Q = torch.eye(3, dtype=torch.float64) * 2
    assert matrix_entropy(P) == 0
    assert matrix_kl_divergence(P, Q) == 6
    assert matrix_cross_entropy(P, Q) == 6
    (matrix_entropy(P) + matrix_kl_divergence(P, Q)).backward()
    assert torch.isfinite(P.grad).all()


@given(
    log_q=st.floats(-20, 20),
    log_gap=st.floats(-17, 1),
    sign=st.sampled_from([-1, 1]),
)
@settings(max_examples=100, deadline=None)
def test_scalar_divergence_keeps_its_digits(log_q, log_gap, sign):
    mpmath = pytest.importorskip("mpmath")
    q = math.exp(log_q)
    p = q * max(0.0, 1 + sign * 10**log_gap)
    got = scalar_kl(torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)).item()
    with mpmath.workdps(80):
        a, b = mpmath.mpf(p), mpmath.mpf(q)
        exact = (a * mpmath.log(a / b) if a else 0) - a + b
        assert got >= 0
        # In the far branch (|z| >= 0.1) k >= (p + q)/100, which costs two digits: 100 units in the last place.
        assert abs(got - exact) <= 200 * 2.3e-16 * exact


def test_small_divergence_is_resolved_where_traces_are_not(random_psd):
    """The control: the difference of traces is rounding noise at a distance of 1e-9; the sum of kernels is not."""
    P = random_psd(5, 0)
    E = random_psd(5, 1)
    step = 1e-9
    values, vectors = torch.linalg.eigh(P)
    rotated = vectors.mT @ E @ vectors
    x, y = values[:, None], values[None, :]
    exact = (
        0.5 * step**2 * (rotated.square() * torch.where(x == y, 1 / x, (x.log() - y.log()) / (x - y))).sum()
    )
    Q = P + step * E
    # Q itself is rounded: E is seen through eps/step = 2e-7 relative noise, times the condition number.
    assert abs(matrix_kl_divergence(P, Q) / exact - 1) < 1e-4
    traces = matrix_cross_entropy(P, Q) - matrix_entropy(P)
    assert abs(traces / exact - 1) > 0.5


@pytest.mark.parametrize("function", FUNCTIONS_OF_TWO)
def test_autocast_changes_nothing(function, random_psd):
    P, Q = random_psd(12, 0).float(), random_psd(12, 1).float()

    def run(enabled):
        A, B = P.clone().requires_grad_(), Q.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = function(A, B) + matrix_entropy(A)
            value.backward()
        return value.detach(), A.grad, B.grad

    for plain, under in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, under)


def test_values_may_be_scaled_and_kept_out_of_the_graph(random_psd):
    P, Q = random_psd(3, 0), random_psd(3, 1).requires_grad_()
    with torch.no_grad():
        assert not matrix_cross_entropy(P, Q).requires_grad
    (g,) = torch.autograd.grad(matrix_cross_entropy(P, Q), Q)
    (g3,) = torch.autograd.grad(3 * matrix_cross_entropy(P, Q), Q)
    assert torch.allclose(g3, 3 * g)


@pytest.mark.parametrize(
    ("condition", "limit"),
    # Relative to float64 on the same float32 numbers. The value weighs log λ by λ, so the error of small
    # eigenvalues (eps each, whatever κ) enters d·eps = 4e-6 at most in the entropy. In the cross-entropy with an
    # unrelated P of trace 1 each log q_j carries eps·κ times P's share 1/d of it: 1e-7·κ, over the value ~κ-free.
    [(1e2, 1e-5), (1e4, 1e-4), (1e6, 1e-2)],
)
def test_float32_error(condition, limit, with_spectrum):
    spectrum = torch.logspace(0, -math.log10(condition), 32, dtype=torch.float64)
    Q = with_spectrum(spectrum.tolist(), 7).float()
    P = with_spectrum([1 / 32] * 32, 8).float()
    entropy, exact = matrix_entropy(Q).double(), matrix_entropy(Q.double())
    assert abs(entropy / exact - 1) < 4e-6
    cross, exact = matrix_cross_entropy(P, Q).double(), matrix_cross_entropy(P.double(), Q.double())
    assert abs(cross / exact - 1) < limit


@pytest.mark.parametrize("function", FUNCTIONS_OF_TWO)
def test_second_derivative_is_refused(function, random_psd):
    P, Q = random_psd(3, 0), random_psd(3, 1).requires_grad_()
    (first,) = torch.autograd.grad(function(P, Q), Q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(Q.square().sum() + first.square().sum(), Q)
