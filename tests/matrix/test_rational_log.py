import math
from types import SimpleNamespace

import pytest
import torch

from mce_llm.matrix import (
    IndefiniteError,
    MatrixInputError,
    RationalLogWarning,
    matrix_cross_entropy,
    matrix_log,
    rational_log,
    shrink,
)
from mce_llm.matrix.rational_log import (
    RationalLogError,
    by_products,
    resolvents,
    surely_positive_semidefinite,
)

# Relative errors against the eigendecomposition in float64: of the logarithm and of the gradients.
TOLERANCES = {torch.float32: (5e-5, 5e-4), torch.float64: (1e-8, 1e-8)}
CONDITION = 1e4
SPECTRA = {
    "log-uniform": lambda d: torch.logspace(0, -math.log10(CONDITION), d, dtype=torch.float64),
    "half small": lambda d: torch.where(torch.arange(d) < (d + 1) // 2, 1.0, 1 / CONDITION).double(),
    "one small": lambda d: torch.where(torch.arange(d) < max(1, d - 1), 1.0, 1 / CONDITION).double(),
    "one large": lambda d: torch.where(torch.arange(d) < 1, 1.0, 1 / CONDITION).double(),
    "multiple of I": lambda d: torch.full((d,), 0.3, dtype=torch.float64),
}


def relative_error(found, exact):
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def log_and_gradient(A, G, **settings):
    leaf = A.clone().requires_grad_()
    value = matrix_log(leaf, **settings)
    return value.detach(), torch.autograd.grad(value, leaf, G)[0]


def cross_entropy_and_gradients(P, Q, **settings):
    P, Q = P.clone().requires_grad_(), Q.clone().requires_grad_()
    value = matrix_cross_entropy(P, Q, **settings)
    return value.detach(), *torch.autograd.grad(value.sum(), (P, Q))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("size", [2, 5, 64])
def test_agrees_with_the_eigendecomposition(name, size, dtype, with_spectrum, random_psd):
    Q, P = with_spectrum(SPECTRA[name](size).tolist(), 1), random_psd(size, 2)
    of_value, of_gradient = TOLERANCES[dtype]
    exact = (*log_and_gradient(Q, P, method="eigh"), *cross_entropy_and_gradients(P, Q, method="eigh"))
    Q, P = Q.to(dtype), P.to(dtype)
    found = (
        *log_and_gradient(Q, P, method="rational"),
        *cross_entropy_and_gradients(P, Q, method="rational"),
    )
    for part, a, b in zip(("log", "its gradient", "MCE", "to P", "to Q"), found, exact, strict=True):
        assert a.dtype == dtype
        tolerance = of_gradient if part in ("its gradient", "to Q") else of_value
        assert relative_error(a, b) <= tolerance, part
    assert torch.equal(found[0], found[0].mT)
    assert torch.equal(found[4], found[4].mT)


def test_float32_is_nearer_to_the_truth_than_the_eigendecomposition(random_psd, with_spectrum):
    """An inverse is good to eps·κ in its largest directions; an eigenvalue of eigh to eps·λ_max everywhere."""
    size = 200
    Q = with_spectrum(torch.arange(1, size + 1).double().pow(-2).tolist(), 1)
    P = with_spectrum(torch.arange(1, size + 1).double().pow(-2).tolist(), 2)
    exact = cross_entropy_and_gradients(P, Q, method="eigh")
    errors = {
        method: relative_error(cross_entropy_and_gradients(P.float(), Q.float(), method=method)[2], exact[2])
        for method in ("eigh", "rational")
    }
    assert errors["rational"] < errors["eigh"] / 3


@pytest.mark.parametrize("spectrum", [[1.0] * 4, [0.3, 0.3, 2.0, 2.0], [1.0, 1.0 + 1e-9, 1.1, 3.0]])
def test_gradcheck_where_eigenvalues_meet(spectrum, with_spectrum, random_psd):
    A, P = with_spectrum(spectrum, 3).requires_grad_(), random_psd(4, 1).requires_grad_()
    check = {"validate": False, "method": "rational"}
    assert torch.autograd.gradcheck(lambda X: matrix_log(X, **check), (A,), atol=1e-6)
    assert torch.autograd.gradcheck(lambda Y, X: matrix_cross_entropy(Y, X, **check), (P, A), atol=1e-6)


@pytest.mark.parametrize("shapes", [((3,), ()), ((), (3,)), ((2, 1), (1, 3)), ((1,), (1,))])
def test_batches_broadcast(shapes, random_psd):
    def batch(shape, seed):
        matrices = [random_psd(5, seed + i) * 10.0**i for i in range(math.prod(shape))]
        return torch.stack(matrices).reshape(*shape, 5, 5)

    P, Q = batch(shapes[0], 0), batch(shapes[1], 10)
    for a, b in zip(
        cross_entropy_and_gradients(P, Q, method="rational"),
        cross_entropy_and_gradients(P, Q, method="eigh"),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7 * b.abs().max().item())
    torch.testing.assert_close(matrix_log(Q, method="rational"), matrix_log(Q), rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale, random_psd):
    A = random_psd(6, 1).float()
    shifted = matrix_log(A) + math.log(scale) * torch.eye(6)
    torch.testing.assert_close(matrix_log(A * scale, method="rational"), shifted, rtol=1e-5, atol=1e-4)


def test_second_derivative_is_refused(random_psd):
    A = random_psd(3, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(matrix_log(A, method="rational").sum(), A, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.sum().backward()


def test_autocast_changes_nothing(random_psd):
    P, Q = random_psd(8, 1).float(), random_psd(8, 2).float()
    plain = cross_entropy_and_gradients(P, Q, method="rational")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cross_entropy_and_gradients(P, Q, method="rational")
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_automatic_choice_on_a_cpu_is_the_eigendecomposition(random_psd):
    A = random_psd(8, 1)
    assert torch.equal(matrix_log(A), matrix_log(A, method="eigh"))
    assert not by_products(torch.empty(4096, 4096), "auto")
    assert by_products(torch.empty(3, 3), "rational")
    assert not by_products(torch.empty(0, 3, 3), "rational")


@pytest.mark.parametrize(
    ("size", "dtype", "capability", "hip", "expected"),
    [
        (2048, torch.float32, (8, 9), None, True),
        (2047, torch.float32, (9, 0), None, False),
        (4096, torch.float64, (9, 0), None, True),
        (4096, torch.float64, (8, 9), None, False),
        (4096, torch.float64, (9, 4), "6.3", True),
        (4096, torch.float64, (11, 0), "6.3", False),
        (4096, torch.float64, (10, 0), "6.3", False),
    ],
)
def test_automatic_choice_on_a_gpu(monkeypatch, size, dtype, capability, hip, expected):
    """Decided by size, dtype and device alone, so a description of a tensor is enough."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    there = SimpleNamespace(
        is_cuda=True, shape=(size, size), dtype=dtype, device="cuda", numel=lambda: size * size
    )
    assert by_products(there, "auto") is expected


def test_empty_batch():
    assert matrix_log(torch.empty(0, 3, 3), method="rational").shape == (0, 3, 3)


@pytest.mark.parametrize("function", [matrix_log, lambda A, **k: matrix_cross_entropy(A, A, **k)])
def test_unknown_method(function):
    with pytest.raises(MatrixInputError, match="one of auto, eigh, rational, got 'newton'"):
        function(torch.eye(3), method="newton")


class TestFallBack:
    """Where resolvents cannot do it, the eigendecomposition does, and says so."""

    def test_too_ill_conditioned(self, with_spectrum):
        A = with_spectrum([1.0, 0.5, 1e-6], 1).float()
        with pytest.warns(
            RationalLogWarning, match=r"matrix_log: .* condition number may be .*method='eigh'"
        ):
            found = log_and_gradient(A, torch.eye(3), method="rational")
        assert torch.equal(found[0], matrix_log(A, method="eigh"))
        with pytest.warns(RationalLogWarning, match="matrix_cross_entropy: "):
            found = cross_entropy_and_gradients(A, A, method="rational")
        exact = cross_entropy_and_gradients(A, A, method="eigh")
        assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))

    def test_no_approximation_is_wide_enough(self, with_spectrum):
        with pytest.warns(RationalLogWarning, match="no 32 poles approximate the logarithm to 1e-08"):
            matrix_log(with_spectrum([1.0, 1e-11], 1), method="rational")

    def test_inverses_that_went_wrong_are_noticed(self, monkeypatch, random_psd):
        """Negative control of the residual: inverses that are off by a thousandth."""
        A = random_psd(6, 1)
        prepared = resolvents(A)
        prepared.sweep()
        honest = rational_log._inverse
        monkeypatch.setattr(rational_log, "_inverse", lambda M: (honest(M)[0] * 1.001, honest(M)[1]))
        with pytest.raises(RationalLogError, match="residual"):
            prepared.sweep()
        with pytest.warns(RationalLogWarning, match="its residual is"):
            found = matrix_log(A, method="rational")
        assert torch.equal(found, matrix_log(A, method="eigh"))

    def test_what_has_no_logarithm_is_refused_as_ever(self, with_spectrum):
        A = with_spectrum([1.0, 0.5, -0.1], 1)
        with pytest.raises(IndefiniteError):
            matrix_log(A, method="rational")
        with pytest.raises(IndefiniteError, match="Q must be"):
            matrix_cross_entropy(torch.eye(3).double(), A, method="rational")
        with pytest.raises(IndefiniteError, match="P must be"):
            matrix_cross_entropy(A, torch.eye(3).double(), method="rational")


def test_singular_targets_are_welcome(with_spectrum, random_psd):
    P, Q = with_spectrum([1.0, 0.0, 0.0, 0.0], 1), random_psd(4, 2)
    assert surely_positive_semidefinite(P)
    assert not surely_positive_semidefinite(with_spectrum([1.0, 0.5, 0.3, -1e-6], 1))
    torch.testing.assert_close(matrix_cross_entropy(P, Q, method="rational"), matrix_cross_entropy(P, Q))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_large_matrices_on_a_gpu():
    """The automatic choice is the rational one, and it is as good as eigh in float64."""
    generator = torch.Generator("cuda").manual_seed(0)
    X = torch.randn(4096, 2048, generator=generator, device="cuda", dtype=torch.float64)
    X *= torch.arange(1, 2049, device="cuda").pow(-0.75)
    Q = shrink(X.mT @ X / (X * X).sum(), 0.05)
    P = torch.eye(2048, device="cuda", dtype=torch.float64) / 2048
    exact = cross_entropy_and_gradients(P, Q, validate=False, method="eigh")
    automatic = cross_entropy_and_gradients(P.float(), Q.float(), validate=False)
    rational = cross_entropy_and_gradients(P.float(), Q.float(), validate=False, method="rational")
    for a, b, c in zip(automatic, rational, exact, strict=True):
        assert torch.equal(a, b)
        assert relative_error(a, c) <= 1e-4
