"""The fused loss in a training step: masked rows, micro-batches, tied and frozen weights, autocast, checkpointing, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

from helpers.fused_loss import (
    BASELINES,
    KINDS,
    LOSSES,
    assert_same,
    config_id,
    fused,
    number,
    problem,
    reference,
)
from mce_llm.lm import (
    LossInputError,
    MatrixLossConfig,
    linear_matrix_cross_entropy,
)


@pytest.mark.parametrize("config", LOSSES, ids=config_id)
def test_all_labels_ignored_gives_a_connected_zero(config):
    hidden, weight, labels = problem()
    output, gradients = fused(hidden, weight, torch.full_like(labels, -100), config)
    assert number(output.loss) == number(output.cross_entropy) == number(output.matrix_cross_entropy) == 0
    assert output.num_tokens == 0
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("config", LOSSES, ids=config_id)
def test_the_loss_alone_is_attached_to_the_graph(config):
    output, _ = fused(*problem(), config)
    assert output.loss.requires_grad
    parts = [output.cross_entropy, output.matrix_cross_entropy, *output.terms.values()]
    assert not any(part.requires_grad for part in parts)


@pytest.mark.parametrize("config", LOSSES, ids=config_id)
def test_num_items_divides_the_sums(config):
    inputs = problem()
    assert_same(fused(*inputs, config, num_items=50), reference(*inputs, config, num_items=50), torch.float64)
    tensor = fused(*inputs, config, num_items=torch.tensor(50))
    assert_same(tensor, reference(*inputs, config, num_items=50), torch.float64)


def test_token_loss_of_micro_batches_adds_up_to_the_whole():
    hidden, weight, labels = problem()
    config = KINDS[1]
    total = (labels != -100).sum()
    whole, gradients = fused(hidden, weight, labels, config)
    first, first_gradients = fused(hidden[:4], weight, labels[:4], config, num_items=total)
    second, second_gradients = fused(hidden[4:], weight, labels[4:], config, num_items=total)
    torch.testing.assert_close(first.loss + second.loss, whole.loss)
    torch.testing.assert_close(first_gradients[1] + second_gradients[1], gradients[1])


def test_weight_zero_is_cross_entropy_and_measures_the_matrix_part_only_on_demand():
    hidden, weight, labels = problem()
    output, gradients = fused(hidden, weight, labels, MatrixLossConfig(weight=0.0))
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = F.cross_entropy(F.linear(*leaves), labels)
    torch.testing.assert_close(output.loss, loss)
    for ours, stock in zip(gradients, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(ours, stock)
    with_matrix, _ = fused(hidden, weight, labels, MatrixLossConfig())
    torch.testing.assert_close(output.matrix_cross_entropy, with_matrix.matrix_cross_entropy)


def test_input_embeddings_of_another_width():
    hidden, weight, labels = problem()
    table = torch.randn(23, 4, dtype=torch.float64)
    config = MatrixLossConfig(embeddings="input", support=None, order=16)
    assert_same(
        fused(hidden, weight, labels, config, embeddings=table),
        reference(hidden, weight, labels, config, table=table),
        torch.float64,
    )


def test_frozen_tensors_get_no_gradient_and_shape_is_free():
    hidden, weight, labels = problem(tokens=12)
    free = hidden.view(3, 4, 6).requires_grad_()
    output = linear_matrix_cross_entropy(free, weight, labels.view(3, 4), KINDS[1])
    output.loss.backward()
    assert free.grad.shape == (3, 4, 6)
    assert weight.grad is None
    _flat, gradients = fused(hidden.detach(), weight, labels, KINDS[1])
    torch.testing.assert_close(free.grad.view(12, 6), gradients[0])


def test_without_gradients_the_value_is_the_same():
    hidden, weight, labels = problem()
    with torch.no_grad():
        output = linear_matrix_cross_entropy(hidden, weight, labels, KINDS[1])
    torch.testing.assert_close(output.loss, fused(hidden, weight, labels, KINDS[1])[0].loss.detach())


def test_tied_weights_add_both_gradients():
    _, weight, labels = problem()
    tied = weight.clone().requires_grad_()
    hidden = tied[labels.clamp_min(0)] * 1.5
    linear_matrix_cross_entropy(hidden, tied, labels, KINDS[1]).loss.backward()
    (_, _, _), (hidden_gradient, weight_gradient) = reference(hidden.detach(), weight, labels, KINDS[1])
    expected = weight_gradient.index_add(0, labels.clamp_min(0), 1.5 * hidden_gradient)
    torch.testing.assert_close(tied.grad, expected)


def test_autocast_and_bfloat16_keep_the_loss_in_float32():
    hidden, weight, labels = problem(tokens=64, vocabulary=50, width=16)
    exact, expected = reference(hidden, weight, labels, KINDS[1])
    leaves = [hidden.float().requires_grad_(), weight.float().requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = linear_matrix_cross_entropy(*leaves, labels, KINDS[1])
    gradients = torch.autograd.grad(under.loss, leaves)
    assert under.loss.dtype == torch.float32
    # bfloat16 logits carry 8 bits: 0.4 % an entry, averaged over dozens of tokens.
    assert number(under.loss) == pytest.approx(number(exact[0]), rel=1e-2)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours.double() - theirs).norm() / theirs.norm() < 3e-2
    half, half_gradients = fused(hidden, weight, labels, KINDS[1], torch.bfloat16)
    assert number(half.loss) == pytest.approx(number(exact[0]), rel=2e-2)
    assert all(g.dtype == torch.bfloat16 for g in half_gradients)


def test_float16_gradients_of_a_large_batch_do_not_vanish():
    """Divided by ten million labels first, every entry would be below float16's smallest number."""
    hidden, weight, labels = problem()
    leaves = [hidden.half().requires_grad_(), weight.half().requires_grad_()]
    output = linear_matrix_cross_entropy(*leaves, labels, MatrixLossConfig(weight=0.0), num_items=10**9)
    gradients = torch.autograd.grad(output.loss * 2.0**30, leaves)
    _, expected = reference(hidden, weight, labels, MatrixLossConfig(weight=0.0), num_items=10**9)
    for ours, exact in zip(gradients, expected, strict=True):
        assert (ours.double() / 2.0**30 - exact).norm() / exact.norm() < 1e-2


def test_inside_activation_checkpointing():
    hidden, weight, labels = problem()
    plain, expected = fused(hidden, weight, labels, KINDS[1])
    for reentrant in (False, True):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = torch.utils.checkpoint.checkpoint(
            lambda h, w: linear_matrix_cross_entropy(h, w, labels, KINDS[1]).loss,
            *leaves,
            use_reentrant=reentrant,
        )
        loss.backward()
        torch.testing.assert_close(loss, plain.loss)
        for leaf, gradient in zip(leaves, expected, strict=True):
            torch.testing.assert_close(leaf.grad, gradient)


def test_backward_again_with_and_without_the_graph():
    """Gradients are scaled in place when nobody needs them again, and only then."""
    hidden, weight, labels = problem()
    _, expected = fused(hidden, weight, labels, KINDS[1])
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = linear_matrix_cross_entropy(*leaves, labels, KINDS[1]).loss
    (loss * 3).backward(retain_graph=True)
    loss.backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, 4 * gradient)
    with pytest.raises(RuntimeError, match="pass retain_graph=True"):
        loss.backward()


@pytest.mark.parametrize("config", [KINDS[1], BASELINES[0]], ids=config_id)
def test_a_second_derivative_is_refused(config):
    """Beside a term that is differentiable twice it would pass as zero."""
    hidden, weight, labels = problem()
    hidden.requires_grad_()
    loss = linear_matrix_cross_entropy(hidden, weight, labels, config).loss + hidden.square().sum()
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(loss, hidden, create_graph=True)


H, W, Y = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, -100])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.empty(0)}, "sharded parameter"),
        ({"weight": torch.randn(5, 4)}, r"hidden has shape \(4, 3\), its last dimension must be 4"),
        ({"weight": torch.zeros(5, 3, dtype=torch.int8)}, "quantised heads are not supported"),
        ({"hidden": torch.zeros(4, 3, dtype=torch.int64)}, "hidden must be floating point"),
        ({"labels": torch.tensor([0, 1, 2])}, r"labels have shape \(3,\), hidden asks for \(4,\)"),
        ({"labels": Y.int()}, "labels must be int64"),
        (
            {"labels": torch.tensor([0, 1, 5, 2])},
            r"labels must be in \[0, 5\) or -100, got values from 0 to 5",
        ),
        ({"labels": torch.tensor([0, 1, -1, 2])}, "got values from -1 to 2"),
        ({"bias": torch.zeros(4)}, r"bias must have shape \(5,\)"),
        ({"config": MatrixLossConfig(embeddings="input")}, "pass the input table as embeddings="),
        ({"embeddings": torch.randn(6, 3)}, r"one row per vocabulary entry \(5\)"),
        ({"softcap": 0.0}, "softcap must be positive"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ],
)
def test_bad_input_is_refused_by_name(changes, message):
    call = {"hidden": H, "weight": W, "labels": Y, "config": MatrixLossConfig(), **changes}
    with pytest.raises(LossInputError, match=message):
        linear_matrix_cross_entropy(**call)


def test_not_the_last_layer():
    """The gradient that arrives is not one: it must be multiplied in."""
    hidden, weight, labels = problem()
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = linear_matrix_cross_entropy(*leaves, labels, KINDS[1]).loss
    gradients = torch.autograd.grad(loss.square() / math.pi, leaves)
    plain, expected = fused(hidden, weight, labels, KINDS[1])
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs * 2 * plain.loss.detach() / math.pi)
