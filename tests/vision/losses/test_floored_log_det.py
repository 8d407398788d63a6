"""log det with a floor: log det itself where that exists, and beyond it finite, smooth, and drawing eigenvalues back."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.vision.losses import MatrixSSLLoss, MECLoss
from mce_llm.vision.losses.floored_log_det import _lies_right_of, floored_log_det


def with_eigenvalues(real, imaginary=(), seed=0, skew=0.3):
    """A real matrix with these real eigenvalues and complex pairs (x, y), its eigenvectors not orthogonal."""
    blocks = [torch.tensor([[x]], dtype=torch.float64) for x in real]
    blocks += [torch.tensor([[x, y], [-y, x]], dtype=torch.float64) for x, y in imaginary]
    diagonal = torch.block_diag(*blocks)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.eye(len(diagonal), dtype=torch.float64) + skew * torch.randn(
        diagonal.shape, generator=generator, dtype=torch.float64
    )
    return basis @ diagonal @ torch.linalg.inv(basis)


class LogDet(torch.autograd.Function):
    """As autograd sees it, for `gradcheck`."""

    @staticmethod
    def forward(ctx, matrix, floor):
        found = floored_log_det(matrix, floor)
        ctx.gradient = found.gradient
        return found.value

    @staticmethod
    def backward(ctx, outer):
        return outer * ctx.gradient, None


# Like C_pz + μI with μ = 0.05: most eigenvalues near μ, a few above, far from normal.
def like_a_batch(size, seed, lowest):
    generator = torch.Generator().manual_seed(seed)
    spread = 0.05 * (1 + 0.08 * torch.randn(size - 3, generator=generator, dtype=torch.float64)).clamp(
        min=0.6
    )
    return with_eigenvalues([*spread.tolist(), 0.3, 0.12, lowest], seed=seed, skew=0.5 / size**0.5)


# dtype → relative error of value and gradient against float64's log det and inverse, which autograd gives. Measured are up to
# 1e-14 and 2e-7: rounding, by up to the condition of these matrices, which is 10 to 90.
ERRORS = {torch.float64: 1e-13, torch.float32: 2e-6}


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(
    "lowest", [0.04, 0.0051]
)  # far from the floor of 0.005 and next to it: certified, and not
@pytest.mark.parametrize("size", [5, 64, 160])
def test_it_is_log_det_where_all_eigenvalues_are_above_the_floor(size, lowest, dtype):
    matrix = like_a_batch(size, size, lowest)
    assert _lies_right_of(matrix, 0.005) == (lowest == 0.04)
    leaf = matrix.clone().requires_grad_()
    wanted = torch.linalg.slogdet(leaf).logabsdet
    wanted.backward()
    found = floored_log_det(matrix.to(dtype), 0.005)
    assert (found.value.dtype, found.gradient.dtype) == (dtype, dtype)
    assert found.floored == 0
    assert abs(found.value.double() - wanted) <= ERRORS[dtype] * abs(wanted)
    assert (found.gradient.double() - leaf.grad).norm() <= ERRORS[dtype] * leaf.grad.norm()


@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), shift=st.floats(-0.2, 0.2))
@settings(max_examples=40, deadline=None)
def test_what_is_certified_is_true(seed, size, shift):
    """And whatever is computed is log|det| for random matrices whose eigenvalues are all above the floor."""
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 6
    matrix.diagonal().add_(0.3 + shift)
    least = float(torch.linalg.eigvals(matrix).real.min())
    if _lies_right_of(matrix, 0.05):
        assert least > 0.05 * (1 - 1e-9)
    found = floored_log_det(matrix, 0.05)
    assert bool(found.floored) == (least < 0.05)
    if least > 0.05:
        torch.testing.assert_close(found.value, torch.linalg.slogdet(matrix).logabsdet, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("real", "pairs", "floored"),
    [
        ([0.3, 0.05, 0.04], [(0.05, 0.02)], 0),
        ([0.3, 0.05, 0.001], [(0.05, 0.02)], 1),
        ([0.3, 0.05, -0.04], [(0.05, 0.02)], 1),
        ([0.3, -0.05, -0.04], [(0.05, 0.02)], 2),  # det > 0, and no logarithm
        ([0.3, 0.05], [(-0.02, 0.03), (0.05, 0.01)], 2),
        ([0.3, 0.0], [(-0.5, 0.6)], 3),
    ],
)
def test_value_and_gradient_by_the_formula_and_by_finite_differences(real, pairs, floored):
    floor = 0.005
    matrix = with_eigenvalues(real, pairs)
    found = floored_log_det(matrix, floor)
    assert found.floored == floored

    def part(x, y):
        inside = torch.tensor(max(x, floor) ** 2 + y**2, dtype=torch.float64)
        return inside.log() / 2 + min(x - floor, 0) * floor / inside

    wanted = sum(part(x, 0.0) for x in real) + 2 * sum(part(x, y) for x, y in pairs)
    torch.testing.assert_close(found.value, wanted, rtol=1e-9, atol=0)
    assert torch.autograd.gradcheck(
        lambda A: LogDet.apply(A, floor), matrix.requires_grad_(), eps=1e-7, rtol=1e-3
    )


def test_it_goes_on_without_a_jump():
    """Through the floor and through 0 value and gradient change as little as the matrix does."""
    before = None
    for lowest in torch.linspace(0.02, -0.02, 401, dtype=torch.float64).tolist():
        found = floored_log_det(with_eigenvalues([0.3, 0.05, lowest]), 0.005)
        if before is not None:
            assert 0 < before.value - found.value < 1.01 * 1e-4 / 0.005
            assert (before.gradient - found.gradient).norm() < 0.05 * before.gradient.norm()
        before = found


def test_eigenvalues_below_the_floor_are_drawn_back():
    """log|det| itself would push a pair of negative ones further down, though its sign is right."""
    matrix = with_eigenvalues([0.3, 0.05, -0.02, -0.03], skew=0.2)
    wrong = matrix + 1e-3 * torch.linalg.inv(matrix).T
    right = matrix + 1e-6 * floored_log_det(matrix, 0.005).gradient
    assert torch.linalg.eigvals(wrong).real.min() < -0.03
    assert torch.linalg.eigvals(right).real.min() > -0.03


@pytest.mark.parametrize("size", [2, 3, 6])
def test_matrices_without_a_basis_of_eigenvectors(size):
    """A Jordan block, which rounding would divide by zero for; and one with a tiny superdiagonal."""
    for step in (1.0, 1e-9, 0.0):
        block = -0.02 * torch.eye(size, dtype=torch.float64) + step * torch.diag(
            torch.ones(size - 1, dtype=torch.float64), 1
        )
        found = floored_log_det(block, 0.005)
        assert found.gradient.isfinite().all()
        assert (
            found.floored == size or step == 1.0
        )  # rounding moves such eigenvalues by 1e-8 to the power 1/size
        if step != 1.0:
            torch.testing.assert_close(
                found.value, size * (torch.tensor(0.005, dtype=torch.float64).log() - 5), rtol=1e-4, atol=0
            )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    matrix = torch.eye(3)
    matrix[0, 1] = bad
    found = floored_log_det(matrix, 0.1)
    assert found.value.isnan()
    assert found.gradient.isnan().all()


def opposite(m=9, d=4):
    """Teacher and student that point opposite ways: C_pz = −C_zz, with eigenvalues down to −1 but for noise."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(m)[:m, None]
    line = sign * F.normalize(torch.randn(d, generator=generator, dtype=torch.float64), dim=0)
    z1, z2 = (
        (line + 1e-3 * torch.randn(m, d, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(2)
    )
    return z1, z2, -z2.detach(), -z1.detach()


@pytest.mark.parametrize("form", ["gram", "dim"])
@pytest.mark.parametrize(
    "make",
    [
        lambda form: MatrixSSLLoss(mu=0.05, log="exact", form=form),
        lambda form: MECLoss(distortion=0.1, log="exact", form=form),
    ],
)
def test_opposite_views_are_trained_on(make, form):
    """Where there is no log det; a step against the gradient makes the loss smaller, as far as the gradient says."""
    z1, z2, p1, p2 = opposite()
    loss = make(form)
    parts = loss.components(z1, z2, p1, p2)
    assert parts["floored_eigenvalues"] == 2
    slopes = torch.autograd.grad(parts["loss"], (z1, z2))
    assert all(slope.isfinite().all() for slope in slopes)
    step = 1e-9 / sum(slope.square().sum() for slope in slopes)
    after = loss(z1 - step * slopes[0], z2 - step * slopes[1], p1, p2)
    assert (parts["loss"] - after).item() == pytest.approx(1e-9, rel=1e-2)


def test_both_forms_are_one_function_below_the_floor():
    rows = opposite(7, 5)
    gram, dim = (MatrixSSLLoss(mu=0.05, log="exact", form=form) for form in ("gram", "dim"))
    found, wanted = gram.components(*rows), dim.components(*rows)
    assert found["floored_eigenvalues"] == wanted["floored_eigenvalues"] > 0
    torch.testing.assert_close(found["loss"], wanted["loss"], rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(
        torch.autograd.grad(found["loss"], rows[:2]),
        torch.autograd.grad(wanted["loss"], rows[:2]),
        strict=True,
    ):
        assert (ours - theirs).norm() < 1e-7 * theirs.norm()
