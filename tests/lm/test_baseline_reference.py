"""The dense references of label smoothing and EMO against PyTorch, the published package and the formulas written out."""

import pytest
import torch
import torch.nn.functional as F
from emo import EMOLoss
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.lm import (
    MatrixLossConfig,
    TokenGeometry,
    earth_mover_distance,
    earth_mover_loss,
    emo_geometry,
    label_smoothing_loss,
)

PUBLISHED = MatrixLossConfig(loss="emo")
UNLIMITED = MatrixLossConfig(loss="emo", emo_max_ratio=0)


def problem(tokens=9, vocabulary=13, width=5, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    table = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64) + 0.5
    return logits, labels, table


def published(logits, labels, table):
    """EMOLoss shifts by itself: a first label and a last position that it drops."""
    logits = torch.cat([logits, logits[:1]]).unsqueeze(0)
    labels = torch.cat([labels[:1], labels]).unsqueeze(0)
    return EMOLoss(logits, labels, table)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(2, 15),
    st.floats(0.001, 0.999),
    st.sampled_from([0.0, 1.0, 30.0]),
)
def test_label_smoothing_is_pytorchs(seed, tokens, vocabulary, smoothing, scale):
    logits, labels, _ = problem(tokens, vocabulary, 2, scale, seed)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(label_smoothing_loss(logits, labels, smoothing), expected)


def test_rows_that_are_no_tokens_have_no_share_of_the_target():
    """The definition written out: the target is 1 − s on the label and s/n on each of n tokens; q is over all rows."""
    logits, labels, _ = problem()
    mask = torch.arange(13) < 11
    labels = labels % 11
    target = torch.zeros_like(logits)
    target[:, :11] = 0.2 / 11
    target[torch.arange(9), labels] += 0.8
    expected = F.cross_entropy(logits, target, reduction="none")
    found = label_smoothing_loss(logits, labels, 0.2, mask)
    torch.testing.assert_close(found, expected)
    assert (found - label_smoothing_loss(logits, labels, 0.2)).abs().max() > 1e-2


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(2, 15),
    st.integers(1, 6),
    st.sampled_from([0.0, 1.0, 4.0]),
)
def test_emo_is_the_published_package(seed, tokens, vocabulary, width, scale):
    """Value and gradient of EMOLoss 0.0.3 as it is called by default (mode 1), in float64."""
    logits, labels, table = problem(tokens, vocabulary, width, scale, seed)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    theirs = published(leaves[0], labels, table)
    ours = earth_mover_loss(leaves[1], labels, emo_geometry(table, PUBLISHED), PUBLISHED).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(theirs, leaves[0]) + torch.autograd.grad(ours, leaves[1])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def test_the_package_skips_masked_labels_as_we_do():
    logits, labels, table = problem()
    masked = labels.clone()
    masked[[1, 4]] = -100
    kept = [0, 2, 3, 5, 6, 7, 8]
    ours = earth_mover_loss(logits[kept], labels[kept], emo_geometry(table, PUBLISHED), PUBLISHED).mean()
    torch.testing.assert_close(ours, published(logits, masked, table))


def test_the_limit_on_the_ratio_matters_here():
    """Negative control: the paper's formula and the package's are different numbers on these problems."""
    logits, labels, table = problem()
    geometry = emo_geometry(table, PUBLISHED)
    limited, free = (earth_mover_loss(logits, labels, geometry, c) for c in (PUBLISHED, UNLIMITED))
    assert (limited - free).abs().max() > 0.1


def test_without_a_limit_the_value_is_cross_entropy_and_the_gradient_is_not():
    logits, labels, table = problem()
    logits.requires_grad_()
    loss = earth_mover_loss(logits, labels, emo_geometry(table, UNLIMITED), UNLIMITED)
    plain = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, plain)
    ours, theirs = (torch.autograd.grad(x.sum(), logits)[0] for x in (loss, plain))
    assert (ours - theirs).norm() > 0.1 * theirs.norm()


def test_distance_is_the_cost_of_moving_all_mass_to_the_target():
    """Between a distribution and a single point there is one transport plan; its cost written out."""
    logits, labels, table = problem()
    rows = F.normalize(table, dim=-1)
    q = logits.softmax(-1)
    expected = torch.stack(
        [sum(q[t, v] * (1 - rows[y] @ rows[v]) for v in range(13)) for t, y in enumerate(labels)]
    )
    found = earth_mover_distance(logits, labels, emo_geometry(table, PUBLISHED))
    torch.testing.assert_close(found, expected)
    assert (found >= 0).all()
    assert (found <= 2).all()


def test_centred_rows_are_another_geometry():
    logits, labels, table = problem()
    config = MatrixLossConfig(loss="emo", emo_center=True)
    rows = F.normalize(table - table.mean(0), dim=-1)
    expected = 1 - ((logits.softmax(-1) @ rows) * rows[labels]).sum(-1)
    torch.testing.assert_close(earth_mover_distance(logits, labels, emo_geometry(table, config)), expected)
    raw = earth_mover_distance(logits, labels, emo_geometry(table, PUBLISHED))
    assert (raw - expected).abs().max() > 0.05


def test_a_near_wrong_token_costs_less_than_a_far_one():
    table = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], dtype=torch.float64)
    confident = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]], dtype=torch.float64)
    near, far = earth_mover_distance(confident, torch.tensor([0, 0]), emo_geometry(table, PUBLISHED))
    assert near < 0.05 < 0.9 < far


def test_the_geometry_of_emo_ignores_that_of_the_matrix_loss():
    _, _, table = problem()
    odd = MatrixLossConfig(loss="emo", normalize=False, center=True)
    torch.testing.assert_close(emo_geometry(table, odd).all_rows(), emo_geometry(table, PUBLISHED).all_rows())
    assert not torch.allclose(
        TokenGeometry.from_table(table, odd).all_rows(), emo_geometry(table, odd).all_rows()
    )


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_gradient_of_emo_is_that_of_the_distance_with_a_constant_factor(weight):
    logits, labels, table = problem()
    config = MatrixLossConfig(loss="emo", emo_weight=weight)
    geometry = emo_geometry(table, config)
    leaf = logits.clone().requires_grad_()
    plain = F.cross_entropy(leaf, labels, reduction="none")
    distance = earth_mover_distance(leaf, labels, geometry)
    ratio = (plain / distance).detach().clamp_max(3)
    expected = torch.autograd.grad(((1 - weight) * plain + weight * ratio * distance).sum(), leaf)[0]
    loss = earth_mover_loss(leaf, labels, geometry, config).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_gradients_of_label_smoothing_are_those_of_the_value(smoothing):
    logits, labels, _ = problem(4, 6)
    mask = torch.tensor([True, True, False, True, True, True])
    assert torch.autograd.gradcheck(
        lambda x: label_smoothing_loss(x, labels, smoothing, mask), logits.requires_grad_()
    )


def test_gradients_of_the_distance_are_those_of_the_value():
    logits, labels, table = problem(4, 6)
    geometry = emo_geometry(table, PUBLISHED)
    assert torch.autograd.gradcheck(
        lambda x: earth_mover_distance(x, labels, geometry), logits.requires_grad_()
    )
