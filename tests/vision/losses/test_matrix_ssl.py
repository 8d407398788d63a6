"""The Matrix-SSL loss against the published formula written out with d×d matrices, and what it must be invariant to."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.vision.losses import MatrixSSLLoss, matrix_ssl_loss
from mce_llm.vision.losses.terms import cheaper_form


def published(z1, z2, p1, p2, *, lam, mu, gamma, order, variant):
    """As in github.com/yifanzhang-pro/Matrix-SSL, in our own words; the trace is what the paper has beyond it."""

    def log_series(Q):
        X = Q - torch.eye(len(Q), dtype=Q.dtype)
        return sum((-1) ** (i + 1) * torch.linalg.matrix_power(X, i) / i for i in range(1, order + 1))

    total = 0
    for p, z in ((p2, z1), (p1, z2)):
        P, Z = F.normalize(p), F.normalize(z)
        m, d = Z.shape
        J = torch.eye(m, dtype=Z.dtype) - torch.ones(m, m, dtype=Z.dtype) / m
        identity = torch.eye(d, dtype=Z.dtype)
        C_pp, C_pz, C_zz = P.T @ J @ P / m, P.T @ J @ Z / m, Z.T @ J @ Z / m
        total = total - torch.trace(lam * identity @ log_series(C_pz + mu * identity)) / 2
        target, Q = C_pp + mu * identity, C_zz + mu * identity
        total = total - gamma * torch.trace(target @ log_series(Q)) / 2
        if variant == "paper":
            total = total + gamma * torch.trace(Q) / 2
    return total


def assert_same(found, wanted, tolerance=1e-10):
    """Values and gradients agree relatively; 1e-10 leaves float64 five digits for sums of up to d terms."""
    assert float(abs(found[0] - wanted[0])) <= tolerance * max(1, float(abs(wanted[0])))
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


SHAPES = [(2, 9), (5, 9), (7, 7), (12, 4)]
CASES = [
    {"lam": 1.0, "mu": 1.0, "gamma": 1.0},
    {"lam": 1.3, "mu": 0.5, "gamma": 0.6},
    {"lam": 0.4, "mu": 1.3, "gamma": 2.0},
    {"lam": 0.0, "mu": 1.0, "gamma": 1.0},
    {"lam": 1.0, "mu": 0.8, "gamma": 0.0},
]


@pytest.mark.parametrize("form", ["gram", "dim"])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_it_is_the_published_formula(views, value_and_gradients, m, d, order, form):
    rows = views(m, d, seed=m + d)
    for case in CASES:
        for variant in ("official", "paper"):
            same = {**case, "order": order, "variant": variant}
            ours = MatrixSSLLoss(**same, form=form, on_divergence="ignore")
            found = value_and_gradients(ours, rows)
            wanted = value_and_gradients(lambda *r, same=same: published(*r, **same), rows)
            assert_same(found, wanted)


@pytest.mark.parametrize("form", ["gram", "dim"])
def test_strips_of_large_symmetric_products(views, value_and_gradients, form, monkeypatch):
    """Large symmetric products are done in strips; here, sizes that the strips do not divide."""
    monkeypatch.setattr("mce_llm.vision.losses.products._NARROWEST_STRIP", 16)
    rows = views(61, 75)
    same = {"lam": 1.0, "mu": 1.0, "gamma": 1.0, "order": 4, "variant": "paper"}
    found = value_and_gradients(MatrixSSLLoss(**same, form=form), rows)
    assert_same(found, value_and_gradients(lambda *r: published(*r, **same), rows))


def test_the_recipe_is_the_default(views):
    """λ = μ = γ = 1, order 4, Taylor; the paper's variant."""
    rows = views(6, 10)
    recipe = {"lam": 1.0, "mu": 1.0, "gamma": 1.0, "order": 4}
    assert MatrixSSLLoss()(*rows).item() == pytest.approx(published(*rows, **recipe, variant="paper").item())
    official = matrix_ssl_loss(*rows, variant="official").item()
    assert official == pytest.approx(published(*rows, **recipe, variant="official").item(), rel=1e-12)


@pytest.mark.parametrize("log", ["taylor", "exact"])
@pytest.mark.parametrize("form", ["gram", "dim"])
def test_gradients_by_finite_differences(views, log, form):
    rows = views(4, 6, seed=3)
    loss = MatrixSSLLoss(gamma=0.7, mu=0.9, lam=1.2, log=log, form=form)
    p1, p2 = rows[2:]
    assert torch.autograd.gradcheck(lambda z1, z2: loss(z1, z2, p1, p2), rows[:2])


def test_no_gradient_reaches_the_teacher(views):
    z1, z2, p1, p2 = views(5, 6)
    p1, p2 = p1.requires_grad_(), p2.requires_grad_()
    MatrixSSLLoss()(z1, z2, p1, p2).backward()
    assert p1.grad is None
    assert p2.grad is None
    assert z1.grad.norm() > 0


def test_one_view_may_be_constant(views, value_and_gradients):
    rows = views(5, 6)
    _, first, _ = value_and_gradients(MatrixSSLLoss(), rows)
    loss = MatrixSSLLoss()(rows[0], rows[1].detach(), *rows[2:])
    assert torch.allclose(torch.autograd.grad(loss, rows[0])[0], first, rtol=1e-12)
    with torch.no_grad():
        assert not MatrixSSLLoss()(*rows).requires_grad


def test_a_second_derivative_is_refused(views):
    z1, *others = views(5, 6)
    (gradient,) = torch.autograd.grad(MatrixSSLLoss()(z1, *others), z1, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.square().sum().backward()


@given(
    m=st.integers(2, 12),
    d=st.integers(2, 12),
    seed=st.integers(0, 10**6),
    log=st.sampled_from(["taylor", "exact"]),
)
@settings(max_examples=12, deadline=None)
def test_invariances(views, m, d, seed, log):
    """Lengths of rows, a common rotation, the order of the images and the names of the views do not matter."""
    generator = torch.Generator().manual_seed(seed)
    rows = [row.detach() for row in views(m, d, seed=seed)]
    for variant in ("official", "paper"):
        loss = MatrixSSLLoss(variant=variant, log=log)
        value = loss(*rows)
        lengths = torch.rand(m, 1, generator=generator, dtype=torch.float64) * 10 + 0.1
        rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        order = torch.randperm(m, generator=generator)
        for same in (
            [row * lengths for row in rows],
            [row @ rotation for row in rows],
            [row[order] for row in rows],
            [rows[1], rows[0], rows[3], rows[2]],
        ):
            torch.testing.assert_close(loss(*same), value, rtol=1e-10, atol=1e-10)


@given(m=st.integers(2, 40), d=st.integers(1, 40), order=st.integers(1, 9), seed=st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_both_forms_are_one_function(views, value_and_gradients, m, d, order, seed):
    rows = views(m, d + 1, seed=seed)
    gram, dim = (MatrixSSLLoss(mu=0.8, order=order, form=form) for form in ("gram", "dim"))
    assert_same(value_and_gradients(gram, rows), value_and_gradients(dim, rows), 1e-9)


@pytest.mark.parametrize(
    ("m", "d", "form"),
    [(1024, 2048, "gram"), (2048, 2048, "gram"), (4096, 2048, "dim")],
)
def test_the_cheaper_form_is_taken(m, d, form):
    assert cheaper_form(m, d) == form
    gram, dim = 3.625 * m * m * d + 6.875 * m**3, 4.25 * m * d * d + 6.25 * d**3
    assert (gram <= dim) == (form == "gram")


def test_auto_is_one_of_the_forms(views):
    for m, d, form in ((5, 8, "gram"), (8, 5, "dim")):
        rows = views(m, d)
        assert torch.equal(MatrixSSLLoss()(*rows), MatrixSSLLoss(form=form)(*rows))


@pytest.mark.parametrize("form", ["gram", "dim"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_rows_are_computed_in_float32(views, value_and_gradients, dtype, form):
    """The rows as they are, exactly, computed in float64, are the truth: what is left is float32's rounding.

    A loss formed in bfloat16 would be off by 1e-3 or more.
    """
    rows = views(24, 40, dtype=dtype)
    loss = MatrixSSLLoss(form=form)
    found = value_and_gradients(loss, rows)
    wide = [row.detach().double().requires_grad_(row.requires_grad) for row in rows]
    wanted = value_and_gradients(loss, wide)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == dtype
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=3e-6)
    # The gradient itself is rounded to the dtype of the rows.
    rounding = {torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 2e-3}[dtype]
    for ours, truth in zip(found[1:], wanted[1:], strict=True):
        assert float((ours.double() - truth).norm() / truth.norm()) < rounding


@pytest.mark.parametrize("log", ["taylor", "exact"])
@pytest.mark.parametrize("form", ["gram", "dim"])
def test_autocast_changes_nothing(views, value_and_gradients, form, log):
    rows = views(24, 40, dtype=torch.float32)
    loss = MatrixSSLLoss(form=form, log=log)
    plain = value_and_gradients(loss, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*rows)
        inside = (value.detach(), *torch.autograd.grad(value, rows[:2]))
    for ours, truth in zip(inside, plain, strict=True):
        assert torch.equal(ours, truth)


def test_components_add_up(views):
    rows = views(6, 9)
    parts = MatrixSSLLoss(gamma=0.6).components(*rows)
    assert list(parts) == ["loss", "uniformity", "alignment", "trace", "taylor_radius"]
    total = parts["uniformity"] + parts["alignment"] + parts["trace"]
    assert torch.allclose(parts["loss"], total, rtol=1e-14)
    assert parts["loss"].requires_grad
    assert not any(parts[name].requires_grad for name in parts if name != "loss")
    assert list(MatrixSSLLoss(variant="official", log="exact").components(*rows)) == [
        "loss",
        "uniformity",
        "alignment",
        "floored_eigenvalues",
    ]


def test_the_settings_are_shown():
    assert "gamma=2.0, mu=1.0" in repr(MatrixSSLLoss(gamma=2.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", ["gram", "dim"])
def test_tf32_changes_nothing_on_a_gpu(views, value_and_gradients, form):
    rows = views(300, 500, dtype=torch.float32)
    wide = [row.detach().double().requires_grad_(row.requires_grad) for row in rows]
    rows = [row.detach().cuda().requires_grad_(row.requires_grad) for row in rows]
    loss = MatrixSSLLoss(form=form)
    wanted = value_and_gradients(loss, wide)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = value_and_gradients(loss, rows)
    finally:
        torch.set_float32_matmul_precision(before)
    for ours, truth in zip(found, wanted, strict=True):
        # TF32 alone would be off by 1e-3.
        assert float((ours.cpu().double() - truth).norm() / truth.norm()) < 2e-5
