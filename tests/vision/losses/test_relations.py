"""What the docstrings claim about how the losses are related, in numbers."""

import pytest
import torch
import torch.nn.functional as F

from mce_llm.vision.losses import (
    BarlowTwinsLoss,
    MatrixSSLLoss,
    MECLoss,
    SimSiamLoss,
    TotalCodingRateLoss,
)
from mce_llm.vision.losses.logarithms import TaylorLog


def unit(m, d, seed):
    rows = torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows)


def mirrored(rows):
    """The rows and their opposites: the mean is zero, so that centring does nothing."""
    return torch.cat([rows, -rows]).requires_grad_(rows.requires_grad)


def balanced(views, m, d):
    return [mirrored(row.detach()).requires_grad_(index < 2) for index, row in enumerate(views(m, d))]


def cross_with_trace(p, z):
    """Uniformity with the trace of Q put in: MCE(I, I + C_pz) on the 2m mirrored rows."""
    uniformity = MatrixSSLLoss(gamma=0)(z, z, p, p)
    return uniformity, uniformity + (p * z).sum(1).mean() + z.shape[1]


def test_the_trace_of_the_uniformity_term_would_delete_alignment():
    """Without it, opposite views cost 2 tr C more than aligned ones; with it, only the third order tells them apart.

    For 2·48 unit rows in 64 dimensions C has eigenvalues of about 1/48, so each order is 48 times smaller than the last.
    """
    p = mirrored(unit(48, 64, 1))
    aligned, aligned_with_trace = cross_with_trace(p, p.clone())
    opposite, opposite_with_trace = cross_with_trace(p, -p)
    assert float(opposite - aligned) == pytest.approx(2.0, rel=0.01)  # tr C = 1 for unit rows
    assert abs(float(opposite_with_trace - aligned_with_trace)) < 1e-3


def test_the_trace_of_the_uniformity_term_would_cancel_its_gradient():
    """Near the aligned views the pull towards the target is the first-order term's, and the trace takes it away.

    What is left is of second order, C_pz of the gradient, whose eigenvalues are 1/48 on average and up to 0.1.
    """
    p = mirrored(unit(48, 64, 1))
    z = F.normalize(p + 0.1 * mirrored(unit(48, 64, 2))).requires_grad_()
    plain, with_trace = (
        torch.autograd.grad(value, z, retain_graph=True)[0] for value in cross_with_trace(p, F.normalize(z))
    )
    gap = (p - z).detach()
    pull = -float((plain * gap).sum())  # downhill along the way to the target
    assert pull > 0.5 * float(gap.square().sum()) / len(p)
    assert float(with_trace.norm() / plain.norm()) < 0.2
    assert abs(float((with_trace * gap).sum())) < 0.1 * pull


def test_with_the_trace_alignment_is_least_where_the_covariances_agree(views):
    """MCE(P, Q) is least at Q = P: its gradient vanishes there, and the published form's does not."""
    _, _, p1, p2 = views(9, 6)
    # Not normalised again, or only the directions along the sphere would be seen: the gradient to Q itself.
    P = F.normalize(p2)
    P = P - P.mean(0)
    M = P.T @ P / 9 + torch.eye(6, dtype=torch.float64)
    _, gradient, _ = MatrixSSLLoss(log="exact")._exact.cross_entropy(M, P.T @ P / 9)
    assert torch.allclose(gradient, torch.eye(6, dtype=torch.float64), atol=1e-12)  # −gradient + I = 0
    same = [p1.clone().requires_grad_(), p2.clone().requires_grad_(), p2, p1]
    paper, official = (
        MatrixSSLLoss(lam=0, log="exact", variant=name)(*same) for name in ("paper", "official")
    )
    assert torch.autograd.grad(paper, same[0])[0].norm() < 1e-14
    assert torch.autograd.grad(official, same[0])[0].norm() > 1e-3


def test_variants_differ_by_the_trace_alone(views):
    rows = views(7, 5)
    paper, official = (
        MatrixSSLLoss(gamma=0.3, mu=0.9, variant=name)(*rows) for name in ("paper", "official")
    )
    traces = [(F.normalize(z).var(0, correction=0).sum() + 0.9 * 5) for z in rows[:2]]
    assert torch.allclose(paper - official, 0.3 * (traces[0] + traces[1]) / 2, rtol=1e-12)


def test_sim_siam_is_mec_of_order_one(views, value_and_gradients):
    """Whatever the distortion: λ cancels in the first-order term."""
    rows = views(7, 11)
    wanted = value_and_gradients(SimSiamLoss(), rows)
    for distortion in (1.0, 64.0):
        found = value_and_gradients(MECLoss(distortion=distortion, order=1), rows)
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-14)
    second = value_and_gradients(MECLoss(distortion=11.0, order=2), rows)
    assert float((second[1] - wanted[1]).norm() / wanted[1].norm()) > 0.05


def test_mec_is_the_uniformity_of_centred_rows(views, value_and_gradients):
    rows = balanced(views, 6, 9)
    matrix_ssl = value_and_gradients(MatrixSSLLoss(gamma=0), rows)
    mec = value_and_gradients(MECLoss(distortion=9.0), rows)
    for ours, theirs in zip(matrix_ssl, mec, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(("m", "d"), [(5, 8), (20, 6)])
def test_barlow_twins_is_mec_of_order_two(views, m, d):
    """Of standardised columns and symmetric C, with equal weights: ‖C − I‖² = d + 2(−tr log₂(I + C))."""
    rows = views(m, d)[0].detach()
    columns = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    order_two = -TaylorLog(2, 1.0).trace(columns.T @ columns / m, d).value
    barlow = BarlowTwinsLoss(lam=1.0)(rows, rows)
    assert float(barlow) == pytest.approx(d + 2 * float(order_two), rel=1e-12)


def test_coding_rate_is_half_the_exact_mec_of_a_view_with_itself(views):
    rows = views(6, 9)[0].detach()
    rate = -TotalCodingRateLoss(distortion=20.0, invariance=0)(rows, rows)
    length = MECLoss(distortion=20.0, log="exact").components(rows, rows, rows, rows)["coding_length"]
    assert float(rate) == pytest.approx(float(length) * 6 / (6 + 9), rel=1e-12)
