"""The dense references against independent formulas, and their documented properties."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from mce_llm.lm import (
    MatrixLossConfig,
    TokenGeometry,
    expected_matrix_cross_entropy,
    marginal_matrix_cross_entropy,
    reference_matrix_cross_entropy,
    token_matrix_cross_entropy,
)

EPSILON = 0.05
EXACT = MatrixLossConfig(support=None, shrinkage=EPSILON)


def problem(tokens=6, vocabulary=11, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    geometry = TokenGeometry.from_table(
        torch.randn(vocabulary, width, generator=generator, dtype=torch.float64), EXACT
    )
    return logits, labels, geometry


def scipy_mce(target, predicted):
    return float(np.trace(-target @ scipy.linalg.logm(predicted) + predicted).real)


def shrunk(matrix):
    width = matrix.shape[0]
    return (1 - EPSILON) * matrix + EPSILON * np.eye(width) / width


def test_token_is_the_definition_written_out():
    logits, labels, geometry = problem()
    rows, q = geometry.all_rows().numpy(), logits.softmax(-1).numpy()
    for t, value in enumerate(token_matrix_cross_entropy(logits, labels, geometry, EXACT)):
        predicted = shrunk(sum(q[t, v] * np.outer(rows[v], rows[v]) for v in range(11)))
        target = np.outer(rows[labels[t]], rows[labels[t]])
        assert value.item() == pytest.approx(scipy_mce(target, predicted), abs=1e-12)


def test_marginal_is_the_definition_written_out():
    logits, labels, geometry = problem()
    rows, q = geometry.all_rows().numpy(), logits.softmax(-1).mean(0).numpy()
    predicted = shrunk(rows.T @ np.diag(q) @ rows)
    target = shrunk(np.mean([np.outer(rows[y], rows[y]) for y in labels], axis=0))
    value = marginal_matrix_cross_entropy(logits, labels, geometry, EXACT)
    assert value.item() == pytest.approx(scipy_mce(target, predicted), abs=1e-12)


def test_expected_is_the_definition_written_out():
    logits, labels, geometry = problem()
    rows, q = geometry.all_rows().numpy(), logits.softmax(-1).numpy()
    predicted, target = (shrunk(np.cov(x.T, bias=True)) for x in (q @ rows, rows[labels]))
    value = expected_matrix_cross_entropy(logits, labels, geometry, EXACT)
    assert value.item() == pytest.approx(scipy_mce(target, predicted), abs=1e-12)


def test_token_with_orthonormal_rows_is_smoothed_cross_entropy_plus_one():
    config = MatrixLossConfig(support=None, shrinkage=EPSILON, center=False)
    geometry = TokenGeometry.from_table(torch.eye(7, dtype=torch.float64), config)
    logits, labels = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 6, 2, 2, 5])
    q_y = logits.softmax(-1)[torch.arange(5), labels]
    expected = -torch.log((1 - EPSILON) * q_y + EPSILON / 7) + 1
    torch.testing.assert_close(token_matrix_cross_entropy(logits, labels, geometry, config), expected)


def test_a_near_wrong_token_costs_less_than_a_far_one():
    config = MatrixLossConfig(support=None, center=False)
    near = math.cos(0.3), math.sin(0.3), 0.0
    geometry = TokenGeometry.from_table(
        torch.tensor([[1.0, 0, 0], near, [0, 0, 1.0]], dtype=torch.float64), config
    )
    confident = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]], dtype=torch.float64)
    to_near, to_far = token_matrix_cross_entropy(confident, torch.tensor([0, 0]), geometry, config)
    assert to_near < to_far - 1


def test_support_of_the_whole_vocabulary_is_the_full_form_and_less_counts_as_background():
    logits, labels, geometry = problem()
    full = token_matrix_cross_entropy(logits, labels, geometry, EXACT)
    same = token_matrix_cross_entropy(logits, labels, geometry, MatrixLossConfig(support=11))
    less = token_matrix_cross_entropy(logits, labels, geometry, MatrixLossConfig(support=3))
    torch.testing.assert_close(full, same)
    assert (full - less).abs().max() > 1e-3


def test_marginal_is_smallest_where_the_prediction_has_the_target_marginal():
    _, labels, geometry = problem(tokens=400)
    counts = torch.bincount(labels, minlength=11).double() / 400
    best = counts.log().expand(400, -1)
    at_best = marginal_matrix_cross_entropy(best, labels, geometry, EXACT)
    for seed in range(5):
        noise = torch.randn(11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert marginal_matrix_cross_entropy(best + noise, labels, geometry, EXACT) > at_best


@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_gradients_are_those_of_the_value(kind):
    logits, labels, geometry = problem()
    config = MatrixLossConfig(kind=kind, support=None)
    assert torch.autograd.gradcheck(
        lambda x: reference_matrix_cross_entropy(x, labels, geometry, config), logits.requires_grad_()
    )


@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_ignored_labels_do_not_count_and_none_left_is_a_connected_zero(kind):
    logits, labels, geometry = problem()
    config = MatrixLossConfig(kind=kind)
    labels[[1, 4]] = -100
    kept = [0, 2, 3, 5]
    torch.testing.assert_close(
        reference_matrix_cross_entropy(logits, labels, geometry, config),
        reference_matrix_cross_entropy(logits[kept], labels[kept], geometry, config),
    )
    nothing = reference_matrix_cross_entropy(
        logits.requires_grad_(), torch.full_like(labels, -100), geometry, config
    )
    nothing.backward()
    assert nothing == 0
    assert (logits.grad == 0).all()
