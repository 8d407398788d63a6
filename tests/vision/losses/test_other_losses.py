"""MEC, total coding rate, Barlow Twins and SimSiam against their formulas, and the MEC warm-up."""

import pytest
import torch
import torch.nn.functional as F

from mce_llm.vision.losses import (
    LOSSES,
    BarlowTwinsLoss,
    LossSettingsError,
    MECLoss,
    SimSiamLoss,
    TotalCodingRateLoss,
    barlow_twins_loss,
    build_loss,
    mec_loss,
    sim_siam_loss,
    total_coding_rate_loss,
)


def published_mec(z1, z2, p1, p2, inverse, order=4):
    """As in github.com/xinliu20/MEC, in our own words, with its λ⁻¹."""
    total = 0
    for p, z in ((p1, z2), (p2, z1)):
        C = F.normalize(p) @ F.normalize(z).T / inverse
        series = sum((-1) ** (k + 1) * torch.linalg.matrix_power(C, k) / k for k in range(1, order + 1))
        total = total + torch.trace(series)
    return -total * 0.5 / len(z1) * inverse


def published_coding_rate(z1, z2, p1, p2, distortion=0.2, weight=200.0):
    views = [F.normalize(z) for z in (z1, z2)]
    rates = [
        torch.logdet(torch.eye(v.shape[1], dtype=v.dtype) + v.shape[1] / (len(v) * distortion) * v.T @ v) / 2
        for v in views
    ]
    middle = (views[0] + views[1]) / 2
    cosines = [F.cosine_similarity(v, middle).mean() for v in views]
    return -(rates[0] + rates[1]) / 2 - weight * (cosines[0] + cosines[1]) / 2


def published_barlow_twins(z1, z2, p1, p2, lam=0.0051):
    standard = [F.batch_norm(z, None, None, training=True) for z in (z1, z2)]
    C = standard[0].T @ standard[1] / len(z1)
    off = C - torch.diag(C.diagonal())
    return (C.diagonal() - 1).square().sum() + lam * off.square().sum()


def published_sim_siam(z1, z2, p1, p2):
    return -(F.cosine_similarity(z1, p2).mean() + F.cosine_similarity(z2, p1).mean()) / 2


CASES = {
    "mec": (
        MECLoss(distortion=5.0),
        lambda *r: published_mec(*r, inverse=len(r[0]) * 5.0 / r[0].shape[1]),
    ),
    "mec, order 3, dim": (
        MECLoss(distortion=9.0, order=3, form="dim"),
        lambda *r: published_mec(*r, inverse=len(r[0]) * 9.0 / r[0].shape[1], order=3),
    ),
    "mec, gram": (
        MECLoss(form="gram"),
        lambda *r: published_mec(*r, inverse=len(r[0]) * 64.0 / r[0].shape[1]),
    ),
    "total coding rate": (TotalCodingRateLoss(), published_coding_rate),
    "barlow twins": (BarlowTwinsLoss(), published_barlow_twins),
    "barlow twins, scaled": (
        BarlowTwinsLoss(lam=0.3, scale=0.024),
        lambda *r: 0.024 * published_barlow_twins(*r, lam=0.3),
    ),
    "simsiam": (SimSiamLoss(), published_sim_siam),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("m", "d"), [(4, 9), (7, 7), (13, 5)])
def test_value_and_gradient_of_the_formula(views, value_and_gradients, case, m, d):
    ours, formula = CASES[case]
    rows = views(m, d, seed=m)
    found, wanted = value_and_gradients(ours, rows), value_and_gradients(formula, rows)
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-11)
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-10


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "matrix_ssl"])
def test_gradients_by_finite_differences(views, name):
    rows = views(4, 5)
    assert torch.autograd.gradcheck(lambda z1, z2: build_loss(name)(z1, z2, *rows[2:]), rows[:2])


@pytest.mark.parametrize("name", LOSSES)
def test_all_are_called_alike(views, name):
    """Parts are detached, the loss is a float32 scalar for bfloat16 rows, and only students get gradients."""
    rows = [row.detach().requires_grad_() for row in views(6, 8, dtype=torch.bfloat16)]
    loss = build_loss(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = loss.components(*rows)
    assert parts["loss"].shape == ()
    assert parts["loss"].dtype == torch.float32
    assert all(not value.requires_grad and value.shape == () for key, value in parts.items() if key != "loss")
    parts["loss"].backward()
    assert all(row.grad is not None and row.grad.isfinite().all() for row in rows[:2])
    assert all(row.grad is None for row in rows[2:])
    assert torch.equal(loss(*rows), parts["loss"])
    wide = [row.detach().double() for row in rows]
    assert float(parts["loss"].detach()) == pytest.approx(float(loss(*wide)), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if not LOSSES[name].needs_teacher])
def test_some_need_no_teacher(views, name):
    z1, z2, p1, p2 = (row.detach() for row in views(6, 8))
    loss = build_loss(name)
    assert torch.equal(loss(z1, z2), loss(z1, z2, p1, p2))


def test_functions_are_the_modules(views):
    rows = [row.detach() for row in views(6, 8)]
    assert torch.equal(mec_loss(*rows, order=2), MECLoss(order=2)(*rows))
    assert torch.equal(sim_siam_loss(*rows), SimSiamLoss()(*rows))
    assert torch.equal(barlow_twins_loss(*rows[:2], lam=0.1), BarlowTwinsLoss(lam=0.1)(*rows[:2]))
    rate = total_coding_rate_loss(*rows[:2], distortion=0.5)
    assert torch.equal(rate, TotalCodingRateLoss(distortion=0.5)(*rows[:2]))


@pytest.mark.parametrize(
    ("name", "terms"),
    [("total_coding_rate", ["uniformity", "invariance"]), ("barlow_twins", ["invariance", "redundancy"])],
)
def test_parts_add_up(views, name, terms):
    parts = build_loss(name).components(*views(6, 8))
    assert list(parts) == ["loss", *terms]
    assert torch.allclose(sum(parts[term] for term in terms), parts["loss"].detach(), rtol=1e-13)


def test_a_zero_row_is_no_problem_for_standardised_columns(views):
    z1, z2, _, _ = (row.detach() for row in views(6, 8))
    z1[2] = 0
    assert BarlowTwinsLoss()(z1, z2).isfinite()


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0.0, 8.0), (2.5, 6.25), (5.0, 4.5), (10.0, 1.0), (73.0, 1.0), (-1.0, 8.0)]
)
def test_mec_warm_up(views, epoch, factor):
    """λ⁻¹ falls on a line from 8 times to once its value, and stays there."""
    rows = [row.detach() for row in views(6, 8)]
    loss = MECLoss(distortion=3.0, warmup_epochs=10)
    loss.set_epoch(epoch)
    inverse = 6 * 3.0 / 8 * factor
    assert loss.inverse_lambda(6, 8) == pytest.approx(inverse)
    assert float(loss(*rows)) == pytest.approx(float(published_mec(*rows, inverse=inverse)), rel=1e-12)


def test_a_warm_up_that_nobody_advances_is_refused(views):
    loss = MECLoss(warmup_epochs=10)
    with pytest.raises(LossSettingsError, match=r"warmup_epochs = 10, set_epoch has to be called"):
        loss(*views(6, 8))
    loss.set_epoch(3)
    assert loss(*views(6, 8)).isfinite()


def test_the_published_mec_recipe():
    """--m 1024 --dim 2048 --eps 64: eps_d = 64/2048, λ = 1/(m·eps_d) = 1/32."""
    assert MECLoss().inverse_lambda(1024, 2048) == 32
