"""Label smoothing and EMO, fused: hard numbers, rows that are no tokens, precision, micro-batches, patched models."""

import pytest
import torch
import torch.nn.functional as F
from emo import EMOLoss
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fused_loss import BASELINES, config_id, fused, number, problem, reference
from helpers.models import CONFIGS, VOCABULARY, make_batch, make_model
from mce_llm.lm import (
    GeometryError,
    LossInputError,
    MatrixLossConfig,
    emo_geometry,
    label_smoothing_loss,
    linear_matrix_cross_entropy,
    patch_model,
    reference_loss,
    reference_matrix_cross_entropy,
)
from mce_llm.lm.geometry import TokenGeometry

SMOOTHED, EMO = MatrixLossConfig(loss="label_smoothing"), MatrixLossConfig(loss="emo")
TERMS = BASELINES[1:]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(2, 15),
    st.integers(1, 7),
    st.sampled_from([0.0, 1.0, 10.0]),
    st.sampled_from(TERMS),
    st.integers(1, 4),
)
def test_equal_to_the_reference_in_chunks_of_any_size(
    seed, tokens, vocabulary, width, scale, config, chunk_size
):
    hidden, weight, labels = problem(tokens, vocabulary, width, scale, seed)
    output, gradients = fused(hidden, weight, labels, config, chunk_size=chunk_size)
    (loss, *_), expected = reference(hidden, weight, labels, config)
    assert number(output.loss) == pytest.approx(number(loss), rel=1e-9, abs=1e-9)
    plain, shares = config.shares
    parts = plain * number(output.cross_entropy)
    parts += sum(share * number(output.terms[name]) for name, share in shares.items())
    assert number(output.loss) == pytest.approx(parts, rel=1e-12, abs=1e-12)
    for gradient, exact in zip(gradients, expected, strict=True):
        # Without a limit on the factor, it divides by a distance that may be 1e-8 where q is certain.
        assert (gradient - exact).norm() <= 1e-6 * (1 + exact.norm())


@pytest.mark.parametrize("config", TERMS, ids=config_id)
@pytest.mark.parametrize("logit", [1e4, -1e4, 0.0])
def test_saturated_and_uniform_predictions_in_float32(config, logit):
    hidden, weight = torch.full((4, 1), logit), torch.tensor([[1.0], [0.5], [0.25], [-1.0]])
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    output = linear_matrix_cross_entropy(*leaves, labels, config, embeddings=table)
    for gradient in torch.autograd.grad(output.loss, leaves):
        assert torch.isfinite(gradient).all()
    exact, _ = reference(
        hidden.detach().double(), weight.detach().double(), labels, config, table=table.double()
    )
    assert number(output.loss) == pytest.approx(number(exact[0]), rel=1e-5)


@pytest.mark.parametrize("gap", [4.0, 8.0, 12.0])
def test_a_small_distance_keeps_its_digits_in_float32(gap):
    """1 − ⟨ê_y, E[ê]⟩ taken as that difference has none left at 1e-7; sums of costs times probabilities do."""
    logits = torch.tensor([[gap, 0.0, -1.0, 0.5]])
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    eye, label = torch.eye(4), torch.tensor([0])
    found = linear_matrix_cross_entropy(logits, eye, label, EMO, embeddings=table).terms["emo_distance"]
    rows = F.normalize(table.double(), dim=-1)
    costs = 1 - rows @ rows[0]
    costs[0] = 0
    exact = (logits[0].double().softmax(-1) * costs).sum()
    assert number(found) == pytest.approx(number(exact), rel=1e-5)


def test_uniform_targets_are_over_the_tokens_alone():
    hidden, weight, labels = problem()
    mask = torch.arange(23) < 20
    labels = torch.where(labels >= 0, labels % 20, labels)
    output, gradients = fused(hidden, weight, labels, SMOOTHED, token_mask=mask, chunk_size=4)
    (loss, *_), expected = reference(hidden, weight, labels, SMOOTHED, token_mask=mask)
    assert number(output.loss) == pytest.approx(number(loss), rel=1e-12)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    over_all, _ = fused(hidden, weight, labels, SMOOTHED)
    assert abs(number(over_all.loss) - number(output.loss)) > 1e-3
    with pytest.raises(LossInputError, match=r"one entry per row of the head, got \(22,\) for 23 rows"):
        fused(hidden, weight, labels, SMOOTHED, token_mask=mask[:22])


def test_a_label_that_is_no_token_can_be_smoothed_and_has_no_distance():
    hidden, weight, labels = problem()
    mask = torch.ones(23, dtype=torch.bool)
    mask[labels[1]] = False
    output, _ = fused(hidden, weight, labels, SMOOTHED, token_mask=mask)
    assert torch.isfinite(output.loss)
    with pytest.raises(
        LossInputError, match=f"token {labels[1]} is a label, but the token mask leaves it out"
    ):
        output.matrix_cross_entropy  # noqa: B018
    with pytest.raises(
        LossInputError, match=f"token {labels[1]} is a label, but the token mask leaves it out"
    ):
        fused(hidden, weight, labels, EMO, token_mask=mask)


@pytest.mark.parametrize("center", [False, True])
def test_rows_without_direction_have_cost_one(center):
    """Zero rows (where the package divides by zero), rows that are no tokens, and equal rows, as dense costs."""
    hidden, weight, labels = problem()
    weight[5] = weight.mean(0) * 23 / 22 if center else 0
    weight[5] -= (weight.mean(0) - weight[5]) if center else 0
    weight[3] = weight[4]
    mask = torch.arange(23) < 20
    labels = torch.where(labels >= 0, labels % 20, labels)
    config = MatrixLossConfig(loss="emo", emo_center=center)
    geometry = emo_geometry(weight, config, mask)
    output, gradients = fused(hidden, weight, labels, config, token_mask=mask)
    (loss, *_), expected = reference(hidden, weight, labels, config, token_mask=mask)
    assert number(output.loss) == pytest.approx(number(loss), rel=1e-10)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    kept = labels >= 0
    q = (hidden @ weight.T).softmax(-1)[kept]
    costs = 1 - geometry.rows(labels[kept]) @ geometry.all_rows().T
    assert (costs[:, 20:] == 1).all()
    assert number(output.terms["emo_distance"]) == pytest.approx(number((q * costs).sum(-1).mean()))


def test_a_table_without_directions_is_refused_where_the_loss_needs_them():
    hidden, weight, labels = problem()
    same = torch.zeros(23, 6, dtype=torch.float64)
    assert torch.isfinite(fused(hidden, weight, labels, SMOOTHED, embeddings=same)[0].loss)
    with pytest.raises(GeometryError, match="all embedding rows are zero"):
        fused(hidden, weight, labels, EMO, embeddings=same)


def test_the_table_is_constant():
    """EMO's gradient in the head is that through the logits: with the table apart, it is the same."""
    hidden, weight, labels = problem()
    table = weight.clone().requires_grad_()
    own, gradients = fused(hidden, weight, labels, EMO)
    apart, same = fused(hidden, weight, labels, EMO, embeddings=table)
    assert number(own.loss) == number(apart.loss)
    for a, b in zip(gradients, same, strict=True):
        assert torch.equal(a, b)
    assert table.grad is None
    other, _ = fused(hidden, weight, labels, EMO, embeddings=torch.randn(23, 9, dtype=torch.float64))
    assert abs(number(other.loss) - number(own.loss)) > 1e-3


@pytest.mark.parametrize("config", TERMS, ids=config_id)
def test_micro_batches_add_up_to_the_whole(config):
    hidden, weight, labels = problem()
    total = (labels != -100).sum()
    whole, gradients = fused(hidden, weight, labels, config)
    first, first_gradients = fused(hidden[:4], weight, labels[:4], config, num_items=total)
    second, second_gradients = fused(hidden[4:], weight, labels[4:], config, num_items=total)
    torch.testing.assert_close(first.loss + second.loss, whole.loss)
    torch.testing.assert_close(first_gradients[1] + second_gradients[1], gradients[1])
    for name in whole.terms:
        torch.testing.assert_close(first.terms[name] + second.terms[name], whole.terms[name])


@pytest.mark.parametrize("config", TERMS, ids=config_id)
def test_autocast_and_bfloat16_keep_the_loss_in_float32(config):
    hidden, weight, labels = problem(tokens=64, vocabulary=50, width=16)
    exact, expected = reference(hidden, weight, labels, config)
    leaves = [hidden.float().requires_grad_(), weight.float().requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = linear_matrix_cross_entropy(*leaves, labels, config)
    gradients = torch.autograd.grad(under.loss, leaves)
    assert under.loss.dtype == torch.float32
    # bfloat16 logits carry 8 bits: 0.4 % an entry, averaged over dozens of tokens.
    assert number(under.loss) == pytest.approx(number(exact[0]), rel=1e-2)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == torch.float32
        # As for the matrix loss; without a limit EMO's factor carries the rounding of CE and of D too.
        assert (ours.double() - theirs).norm() / theirs.norm() < 4e-2
    half, half_gradients = fused(hidden, weight, labels, config, torch.bfloat16)
    assert number(half.loss) == pytest.approx(number(exact[0]), rel=2e-2)
    assert all(g.dtype == torch.bfloat16 for g in half_gradients)


@pytest.mark.parametrize("config", TERMS, ids=config_id)
def test_float16_gradients_of_a_large_batch_do_not_vanish(config):
    hidden, weight, labels = problem()
    leaves = [hidden.half().requires_grad_(), weight.half().requires_grad_()]
    output = linear_matrix_cross_entropy(*leaves, labels, config, num_items=10**9)
    gradients = torch.autograd.grad(output.loss * 2.0**30, leaves)
    _, expected = reference(hidden, weight, labels, config, num_items=10**9)
    for ours, exact in zip(gradients, expected, strict=True):
        assert (ours.double() / 2.0**30 - exact).norm() / exact.norm() < 1e-2


@pytest.mark.parametrize("config", BASELINES, ids=config_id)
def test_the_matrix_part_is_measured_on_demand_or_on_the_way(config):
    hidden, weight, labels = problem()
    later, gradients = fused(hidden, weight, labels, config)
    assert later._matrix is None
    now, same = fused(hidden, weight, labels, config, measure=True, details=True)
    assert now._matrix is not None
    (_, _, matrix), _ = reference(hidden, weight, labels, config)
    # The default support is the whole vocabulary here, and order 8 more than the width.
    for output in (later, now):
        assert number(output.matrix_cross_entropy) == pytest.approx(number(matrix), rel=1e-10)
    assert number(now.loss) == number(later.loss)
    assert now.details.keys() == {"tail_mass", "quadrature_gap"}
    assert later.details == {}
    for a, b in zip(gradients, same, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["marginal", "expected"])
def test_batch_kinds_are_measured_beside_another_loss(kind):
    hidden, weight, labels = problem()
    config = MatrixLossConfig(loss="emo", kind=kind)
    output, gradients = fused(hidden, weight, labels, config, measure=True, chunk_size=4)
    (loss, _, matrix), expected = reference(hidden, weight, labels, config)
    assert number(output.matrix_cross_entropy) == pytest.approx(number(matrix), rel=1e-10)
    assert number(output.loss) == pytest.approx(number(loss), rel=1e-12)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def own_loss(model, batch, config):
    """The loss of a stock model by its own logits, in float64."""
    model.eval()
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1].double().flatten(0, 1)
    labels = batch["labels"][:, 1:].flatten()
    table = model.get_output_embeddings().weight.double()
    loss = reference_loss(logits, labels, table, config)
    matrix = TokenGeometry.from_table(table, config)
    return loss.item(), reference_matrix_cross_entropy(logits, labels, matrix, config).item()


@pytest.mark.parametrize("config", [SMOOTHED, EMO], ids=config_id)
@pytest.mark.parametrize(
    "family", sorted(CONFIGS.keys() - {"mixtral-router", "mixtral-sparse", "jetmoe-router"})
)
def test_the_loss_of_a_patched_model_is_that_of_its_own_logits(family, config):
    model, batch = make_model(family), make_batch()
    exact, matrix = own_loss(model, batch, config)
    patch = patch_model(model, config)
    model.train()
    training = model(**batch).loss
    training.backward()
    assert number(training) == pytest.approx(exact, rel=1e-4)
    assert patch.last.matrix_sum is None
    assert patch.last.term_sums.keys() == (
        {"smoothing_loss"} if config is SMOOTHED else {"emo_loss", "emo_distance"}
    )
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval()
    with torch.no_grad():
        assert number(model(**batch).loss) == pytest.approx(exact, rel=1e-4)
    assert number(patch.last.matrix_sum) / patch.last.num_tokens == pytest.approx(matrix, rel=2e-2)


def test_a_patched_model_trains_as_the_published_code_says():
    """Gradients of all parameters, against EMOLoss on the model's own logits with its head as the cost embedding."""
    batch = make_batch()
    theirs, ours = make_model(), make_model()
    EMOLoss(theirs(**batch).logits, batch["labels"], theirs.lm_head.weight.detach().clone()).backward()
    patch_model(ours, EMO)
    ours(**batch).loss.backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=2e-6, msg=name)


def test_the_input_table_gives_the_geometry_where_it_is_asked_for():
    batch = make_batch()
    losses = []
    for name in ("output", "input"):
        model = make_model()
        patch = patch_model(model, MatrixLossConfig(loss="emo", embeddings=name))
        model(**batch)
        losses.append(number(patch.last.term_sums["emo_distance"]))
    assert abs(losses[0] - losses[1]) > 1e-3


def test_phantom_rows_of_a_patched_model_are_no_targets():
    batch = make_batch()
    mask = torch.arange(VOCABULARY) < VOCABULARY - 5
    batch["labels"][batch["labels"] >= VOCABULARY - 5] = -100
    model = make_model()
    plain = model(**batch).logits.detach()[:, :-1].flatten(0, 1)
    labels = batch["labels"][:, 1:].flatten()
    kept = labels != -100
    expected = label_smoothing_loss(plain[kept], labels[kept], 0.1, mask).mean()
    patch_model(model, SMOOTHED, token_mask=mask)
    torch.testing.assert_close(model(**batch).loss, expected)
