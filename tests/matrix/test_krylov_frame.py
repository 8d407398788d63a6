"""Lanczos in coordinates over a frame of vectors with a Gram matrix: the same results as in plain space."""

import pytest
import torch

from mce_llm.matrix import log_quadratic_form, matrix_log

SHIFT = 0.01


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


def frame_problem(tokens, terms, size, seed, dtype=torch.float64):
    """The same Q as coordinates over a frame [x; a_1 … a_k] of unit vectors with its Gram matrix."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(tokens, terms + 1, size, generator=generator, dtype=torch.float64)
    frame = frame / frame.norm(dim=-1, keepdim=True)
    weights = torch.softmax(2 * torch.randn(tokens, terms, generator=generator, dtype=torch.float64), -1)
    return frame.to(dtype), weights.to(dtype)


def in_coordinates(frame, weights):
    G = frame @ frame.mT
    weights = torch.cat([torch.zeros_like(weights[:, :1]), weights], 1)  # x itself carries no weight

    def apply(c, dual):
        return weights * dual + SHIFT * c

    start = torch.zeros(frame.shape[:2], dtype=frame.dtype)
    start[:, 0] = 1
    return apply, G, start


def in_space(frame, weights):
    Q = frame[:, 1:].mT @ (weights.unsqueeze(-1) * frame[:, 1:])
    return Q + SHIFT * torch.eye(frame.shape[-1], dtype=frame.dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # A few eps·κ(Q), with κ = 100 at most: 2e-14 and 1e-5.
    [(torch.float64, 1e-12), (torch.float32, 2e-5)],
)
@pytest.mark.parametrize("order", [1, 4, 8])
def test_run_over_a_frame_equals_the_run_in_space(dtype, tolerance, order):
    frame, weights = frame_problem(5, 7, 12, 0, dtype)
    apply, G, start = in_coordinates(frame, weights)
    over_frame = log_quadratic_form(apply, start, order, shift=SHIFT, gram=G)
    in_full = log_quadratic_form(product(in_space(frame, weights)), frame[:, 0], order, shift=SHIFT)
    assert torch.allclose(over_frame.value, in_full.value, rtol=tolerance, atol=tolerance)
    lifted = over_frame.basis @ frame  # vectors, from their coordinates
    gradient = lifted.mT @ over_frame.core @ lifted
    assert relative(gradient, in_full.gradient()) < 50 * tolerance


def test_frame_with_equal_vectors():
    """x among the a_k, and more vectors than dimensions: the Gram matrix is singular, the result is not."""
    frame, weights = frame_problem(4, 9, 5, 1)
    frame[:, 3] = frame[:, 0]
    weights[0] = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0, 0.0])  # certain: Q = x xᵀ + sI
    apply, G, start = in_coordinates(frame, weights)
    result = log_quadratic_form(apply, start, 8, shift=SHIFT, gram=G)
    value, _ = dense(in_space(frame, weights), frame[:, 0])
    assert torch.isfinite(result.core).all()
    assert result.value[0].item() == pytest.approx(-torch.log(torch.tensor(1 + SHIFT)).item(), abs=1e-7)
    # The singular Gram matrix knows β to √eps = 1.5e-8 of ‖Qv‖, which the value feels squared over the shift.
    assert torch.allclose(result.value, value, rtol=0, atol=1e-9)


def test_small_couplings_over_a_frame_are_kept_in_float32():
    """Confident rows and a tiny shift, as d = 4096 gives: a breakdown limit at √eps is the control that fails."""
    shift, tokens = 1.2e-5, 32
    frame, weights = frame_problem(tokens, 20, 48, 2)
    weights = torch.softmax(6 * weights.log(), -1)
    frame[:, 3], frame[:, 5] = frame[:, 0], frame[:, 4]  # a repeated token makes the Gram matrix singular
    frame, weights = frame.float(), weights.float()
    G = frame @ frame.mT
    padded = torch.cat([torch.zeros(tokens, 1), weights], 1)
    start = torch.zeros(tokens, 21)
    start[:, 0] = 1

    exact_frame = frame.double()
    Q = in_space(exact_frame, weights.double()) + (shift - SHIFT) * torch.eye(48, dtype=torch.float64)
    exact = log_quadratic_form(product(Q), exact_frame[:, 0], 8, shift=shift)

    def logit_gradient(form, vectors):
        gradient = vectors.mT @ form.core.double() @ vectors
        along = (exact_frame[:, 1:] @ gradient * exact_frame[:, 1:]).sum(-1)
        return weights * (along - (weights * along).sum(-1, keepdim=True))

    def error(breakdown):
        form = log_quadratic_form(
            lambda c, dual: padded * dual + shift * c,
            start,
            8,
            shift=shift,
            gram=G,
            breakdown=breakdown,
        )
        over_frame = logit_gradient(form, form.basis.double() @ exact_frame)
        return relative(over_frame, logit_gradient(exact, exact.basis))

    # Ritz values are known to eps of the largest, so the smallest ones to eps/shift = 1e-2.
    assert error(None) < 1e-2
    assert error(4 * torch.finfo(torch.float32).eps ** 0.5) > 5e-2
