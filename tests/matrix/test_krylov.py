import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.matrix import (
    MatrixDtypeError,
    MatrixInputError,
    MatrixShapeError,
    lanczos,
    log_quadratic_form,
    matrix_log,
    tridiagonal_log,
)

SHIFT = 0.01


def problem(tokens, size, seed=0, dtype=torch.float64, terms=None):
    """Q = Σ_k w_k a_k a_kᵀ + SHIFT·I a row, with falling weights, and start rows of any length."""
    generator = torch.Generator().manual_seed(seed)
    terms = 2 * size if terms is None else terms
    frame = torch.randn(tokens, terms, size, generator=generator, dtype=torch.float64)
    frame = frame / frame.norm(dim=-1, keepdim=True)
    weights = torch.softmax(2 * torch.randn(tokens, terms, generator=generator, dtype=torch.float64), -1)
    Q = frame.mT @ (weights.unsqueeze(-1) * frame) + SHIFT * torch.eye(size, dtype=torch.float64)
    start = 1.5 * torch.randn(tokens, size, generator=generator, dtype=torch.float64)
    return Q.to(dtype), start.to(dtype)


def product(Q):
    return lambda v: torch.matmul(Q, v.unsqueeze(-1)).squeeze(-1)


def dense(Q, x):
    """Value and gradient of −xᵀ log(Q) x from the full logarithm."""
    Q = Q.clone().requires_grad_()
    value = -(matrix_log(Q, validate=False) @ x.unsqueeze(-1)).squeeze(-1).mul(x).sum(-1)
    (gradient,) = torch.autograd.grad(value.sum(), Q)
    return value.detach(), gradient


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@given(tokens=st.integers(1, 4), size=st.integers(1, 7), extra=st.integers(0, 3), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_exact_when_the_space_is_exhausted(tokens, size, extra, seed):
    Q, x = problem(tokens, size, seed)
    result = log_quadratic_form(product(Q), x, size + extra, shift=SHIFT)
    value, gradient = dense(Q, x)
    assert torch.allclose(result.value, value, rtol=1e-10, atol=1e-10)
    # ∂f/∂Q is of size ‖x‖²/shift, and κ(Q) = 100.
    assert torch.allclose(result.gradient(), gradient, rtol=1e-8, atol=1e-8)


def test_values_come_from_below_and_rise_with_the_order():
    Q, x = problem(6, 12)
    exact, _ = dense(Q, x)
    values = [log_quadratic_form(product(Q), x, order, shift=SHIFT).value for order in range(1, 13)]
    for lower, upper in itertools.pairwise(values):
        assert (upper >= lower - 1e-12).all()
    assert (values[0] < exact - 1e-3).all()
    assert (values[3] > values[0] + 1e-3).all()
    assert (values[-1] <= exact + 1e-10).all()


def test_previous_is_the_value_of_one_order_less():
    Q, x = problem(3, 10)
    result = log_quadratic_form(product(Q), x, 5, shift=SHIFT)
    shorter = log_quadratic_form(product(Q), x, 4, shift=SHIFT)
    assert torch.allclose(result.previous, shorter.value, rtol=1e-12, atol=0)
    assert log_quadratic_form(product(Q), x, 1, shift=SHIFT).previous is None


def test_order_one_is_the_closed_form():
    Q, x = problem(4, 6)
    norm2 = x.square().sum(-1)
    quotient = (product(Q)(x) * x).sum(-1) / norm2
    result = log_quadratic_form(product(Q), x, 1, shift=SHIFT)
    assert torch.allclose(result.value, -norm2 * quotient.log())
    # d/dQ of −‖x‖² log(xᵀQx/‖x‖²) is −‖x‖²·x xᵀ/xᵀQx.
    expected = -(norm2 / (quotient * norm2))[:, None, None] * x.unsqueeze(-1) * x.unsqueeze(-2)
    assert torch.allclose(result.gradient(), expected)


def test_gradient_converges_to_the_dense_one():
    Q, x = problem(8, 48, terms=200)
    exact_value, exact = dense(Q, x)
    errors = {m: log_quadratic_form(product(Q), x, m, shift=SHIFT) for m in (2, 4, 8, 16)}
    value_errors = [relative(r.value, exact_value) for r in errors.values()]
    gradient_errors = [relative(r.gradient(), exact) for r in errors.values()]
    for series in (value_errors, gradient_errors):
        assert series == sorted(series, reverse=True)
    # κ = 20: Lanczos of order m converges at ((√κ − 1)/(√κ + 1))^(2m) = 4e-4 at m = 8, the gradient at its root.
    assert value_errors[2] < 4e-4
    assert gradient_errors[2] < 2e-2


def test_core_is_the_derivative_of_the_tridiagonal_value():
    """The core against central differences in each entry of the tridiagonal matrix."""
    alphas = torch.tensor([[0.5, 0.8, 0.8, 1.3]], dtype=torch.float64)
    betas = torch.tensor([[0.1, 0.2, 0.05]], dtype=torch.float64)
    norm2 = torch.tensor([2.5], dtype=torch.float64)
    core = tridiagonal_log(alphas, betas, norm2, 1e-3).core[0]
    step = 1e-6
    for parameter, offset in ((alphas, 0), (betas, 1)):
        for i in range(parameter.shape[1]):
            values = []
            for sign in (1, -1):
                moved = parameter.clone()
                moved[0, i] += sign * step
                pair = (moved, betas) if offset == 0 else (alphas, moved)
                values.append(tridiagonal_log(*pair, norm2, 1e-3).value.item())
            slope = (values[0] - values[1]) / (2 * step)
            entry = core[i, i + offset].item() * (1 if offset == 0 else 2)
            assert slope == pytest.approx(entry, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, 2, 8])
def test_breakdown_on_rank_one(dtype, order):
    """A certain prediction: Q = a aᵀ + sI, started in a, across a, and at an angle."""
    a = torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=dtype) / 5
    Q = torch.outer(a, a) + SHIFT * torch.eye(4, dtype=dtype)
    x = torch.stack([a, torch.tensor([0.0, 0, 1, 0], dtype=dtype), torch.tensor([1.0, 0, 0, 1], dtype=dtype)])
    result = log_quadratic_form(product(Q.expand(3, 4, 4)), x, order, shift=SHIFT)
    exact, gradient = dense(Q.double().expand(3, 4, 4), x.double())
    exhausted = 3 if order >= 2 else 2  # the rows whose Krylov space is exhausted at this order
    tolerance = 100 * torch.finfo(dtype).eps / SHIFT
    assert (result.value.double() - exact)[:exhausted].abs().max() < tolerance
    difference = (result.gradient().double() - gradient)[:exhausted]
    along = (difference @ x.double()[:exhausted].unsqueeze(-1)).squeeze(-1)
    assert along.abs().max() < tolerance / SHIFT
    for tensor in (result.value, result.basis, result.core):
        assert torch.isfinite(tensor).all()
    # Frozen from the second vector on: a row that went on would carry normalised rounding noise here.
    assert result.basis[:2, 1:].abs().max() == 0 if order > 1 else True


def test_breakdown_freezes_one_row_and_not_its_neighbours():
    Q, x = problem(3, 6)
    Q[1] = SHIFT * torch.eye(6, dtype=torch.float64)
    result = log_quadratic_form(product(Q), x, 6, shift=SHIFT)
    value, gradient = dense(Q, x)
    assert torch.allclose(result.value, value, rtol=1e-10, atol=0)
    assert torch.allclose(result.gradient()[::2], gradient[::2], rtol=1e-8, atol=1e-8)
    assert result.basis[1, 1:].abs().max() == 0


@pytest.mark.parametrize("order", [1, 5])
def test_zero_start(order):
    Q, x = problem(3, 4)
    x[1] = 0
    result = log_quadratic_form(product(Q), x, order, shift=SHIFT)
    assert result.value[1] == 0
    assert result.core[1].abs().max() == 0
    assert result.basis[1].abs().max() == 0
    alone = log_quadratic_form(product(Q[[0, 2]]), x[[0, 2]], order, shift=SHIFT)
    assert torch.allclose(result.value[[0, 2]], alone.value)


def test_no_rows():
    result = log_quadratic_form(lambda v: v, torch.zeros(0, 4), 3, shift=SHIFT)
    assert result.value.shape == (0,)
    assert result.core.shape == (0, 3, 3)


def test_bad_row_gives_nan_for_itself_alone():
    Q, x = problem(3, 4)
    Q[2, 0, 0] = torch.nan
    result = log_quadratic_form(product(Q), x, 4, shift=SHIFT)
    assert torch.isnan(result.value).tolist() == [False, False, True]
    assert torch.isnan(result.core).any(dim=(1, 2)).tolist() == [False, False, True]
    x[0, 0] = torch.inf
    result = log_quadratic_form(product(Q), x, 4, shift=SHIFT)
    assert torch.isnan(result.value).tolist() == [True, False, True]


@given(scale=st.integers(-6, 6), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_scales_with_the_square_of_the_start(scale, seed):
    Q, x = problem(2, 5, seed)
    factor = 10.0**scale
    small = log_quadratic_form(product(Q), factor * x, 3, shift=SHIFT)
    plain = log_quadratic_form(product(Q), x, 3, shift=SHIFT)
    assert torch.allclose(small.value, factor**2 * plain.value, rtol=1e-9, atol=0)
    assert torch.allclose(small.gradient(), factor**2 * plain.gradient(), rtol=1e-7, atol=0)


def test_basis_is_orthonormal_in_float32_at_high_order():
    """Twice re-orthogonalised; a plain three-term recurrence is the control that loses it."""
    size, order = 200, 40
    spectrum = torch.logspace(0, -3, size)
    spectrum[0] = 50.0
    start = torch.ones(1, size)
    apply = product(torch.diag(spectrum)[None])
    run = lanczos(apply, start, order)
    V = run.basis[0]
    assert (V @ V.mT - torch.eye(order)).abs().max() < 1e-5
    projected = V.double() @ torch.diag(spectrum).double() @ V.double().mT
    tridiagonal = torch.diag(run.alphas[0]) + torch.diag(run.betas[0], 1) + torch.diag(run.betas[0], -1)
    assert (projected - tridiagonal.double()).abs().max() < 50 * 2e-6

    plain, previous, vector, beta = [], torch.zeros(size), start[0] / start.norm(), 0.0
    for _ in range(order):
        plain.append(vector)
        image = spectrum * vector - beta * previous
        image = image - (image @ vector) * vector
        beta, previous = image.norm(), vector
        vector = image / beta
    plain = torch.stack(plain)
    assert (plain @ plain.mT - torch.eye(order)).abs().max() > 0.1


def test_autocast_changes_nothing_and_no_graph_is_kept():
    Q, x = problem(3, 8, dtype=torch.float32)
    x.requires_grad_()
    plain = log_quadratic_form(product(Q), x, 4, shift=SHIFT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = log_quadratic_form(product(Q), x, 4, shift=SHIFT)
    assert torch.equal(plain.value, under.value)
    assert torch.equal(plain.core, under.core)
    assert not plain.value.requires_grad


def test_ritz_values_below_the_shift_count_as_the_shift():
    alphas = torch.tensor([[-1e-9]], dtype=torch.float64)
    result = tridiagonal_log(alphas, torch.zeros(1, 0), torch.ones(1, dtype=torch.float64), SHIFT)
    assert result.value.item() == pytest.approx(-torch.log(torch.tensor(SHIFT, dtype=torch.float64)).item())
    assert result.core.item() == pytest.approx(-1 / SHIFT)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_quadratic_form_of_the_last_vector_replaces_its_image(order):
    torch.manual_seed(0)
    A = torch.randn(4, 6, 6, dtype=torch.float64)
    Q, x = A @ A.mT + 0.1 * torch.eye(6), torch.randn(4, 6, dtype=torch.float64)
    x[1] = 0
    calls = []

    def apply(v):
        calls.append(v)
        return (Q @ v.unsqueeze(-1)).squeeze(-1)

    plain = log_quadratic_form(apply, x, order, shift=0.1)
    calls.clear()
    short = log_quadratic_form(
        apply, x, order, shift=0.1, quadratic=lambda v: torch.einsum("td,tde,te->t", v, Q, v), previous=False
    )
    assert len(calls) == order - 1
    torch.testing.assert_close(short.value, plain.value)
    torch.testing.assert_close(short.core, plain.core)
    assert short.previous is None


ROWS = torch.ones(2, 3)
BAD = [
    ({"start": torch.ones(3)}, MatrixShapeError, r"start must be rows, \(T, D\)"),
    ({"start": torch.ones(2, 3, dtype=torch.bfloat16)}, MatrixDtypeError, "cast to float32 first"),
    ({"order": 0}, MatrixInputError, "order must be an integer >= 1, got 0"),
    ({"order": 2.0}, MatrixInputError, "order must be an integer >= 1, got 2.0"),
    ({"shift": 0.0}, MatrixInputError, "shift must be a positive finite number, got 0.0"),
    ({"shift": float("nan")}, MatrixInputError, "shift must be a positive finite number, got nan"),
    ({"gram": torch.eye(3)}, MatrixShapeError, r"gram must be \(T, D, D\)"),
    (
        {"gram": torch.eye(3, dtype=torch.float64).expand(2, 3, 3)},
        MatrixDtypeError,
        "gram must have the dtype",
    ),
    ({"apply": lambda v: v[:, :2]}, MatrixShapeError, "apply must keep the shape"),
    ({"apply": lambda v: v.bfloat16()}, MatrixDtypeError, "apply must keep the dtype"),
]


@pytest.mark.parametrize(("change", "error", "pattern"), BAD)
def test_bad_input(change, error, pattern):
    arguments = {"apply": lambda v: v, "start": ROWS, "order": 2, "shift": 0.1} | change
    with pytest.raises(error, match=pattern):
        log_quadratic_form(
            arguments.pop("apply"), arguments.pop("start"), arguments.pop("order"), **arguments
        )


def test_tridiagonal_shapes_are_checked():
    with pytest.raises(MatrixShapeError, match="alphas, betas and norm2"):
        tridiagonal_log(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2), 0.1)
