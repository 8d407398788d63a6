"""The fused loss against the dense references in float64: values, gradients, odd shapes, hard numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fused_loss import (
    BASELINES,
    KINDS,
    LOSSES,
    TOLERANCE,
    assert_same,
    config_id,
    fused,
    number,
    problem,
    reference,
)
from mce_llm.lm import (
    MatrixLossConfig,
    TokenGeometry,
    linear_matrix_cross_entropy,
    reference_matrix_cross_entropy,
)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("config", LOSSES, ids=config_id)
def test_equals_the_reference(config, dtype):
    inputs = problem()
    bias = torch.randn(23, dtype=torch.float64)
    assert_same(
        fused(*inputs, config, dtype, bias=bias, chunk_size=4), reference(*inputs, config, bias=bias), dtype
    )


@pytest.mark.parametrize("config", KINDS[:1] + KINDS[4:5] + KINDS[6:7] + BASELINES[1:5:2], ids=config_id)
@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"scale": 0.25}, {"softcap": 2.0, "scale": 3.0}])
def test_treatment_of_logits_is_in_value_and_gradient(config, options):
    inputs = problem()
    ours = dict(options)
    if "scale" in ours:
        ours["logit_scale"] = ours.pop("scale")
    assert_same(fused(*inputs, config, **ours), reference(*inputs, config, **options), torch.float64)


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "width"), [(1, 5, 3), (3, 4, 9), (5, 9, 1), (2, 2, 2), (17, 40, 5)]
)
@pytest.mark.parametrize("config", LOSSES, ids=config_id)
def test_odd_shapes(tokens, vocabulary, width, config):
    inputs = problem(tokens, vocabulary, width)
    assert_same(fused(*inputs, config, chunk_size=3), reference(*inputs, config), torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(2, 15),
    st.integers(1, 7),
    st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    st.sampled_from(["token", "marginal", "expected"]),
    st.sampled_from([None, 1, 4]),
    st.sampled_from([0.0, 1e-3, 0.05, 0.9]),
)
def test_always_finite_and_equal_to_the_reference(
    seed, tokens, vocabulary, width, scale, kind, support, shrinkage
):
    hidden, weight, labels = problem(tokens, vocabulary, width, scale, seed)
    config = MatrixLossConfig(kind=kind, support=support, shrinkage=shrinkage, order=32)
    output, gradients = fused(hidden, weight, labels, config)
    (loss, *_), expected = reference(hidden, weight, labels, config)
    assert number(output.loss) == pytest.approx(number(loss), rel=1e-6, abs=1e-6)
    for gradient, exact in zip(gradients, expected, strict=True):
        assert torch.isfinite(gradient).all()
        # Loewner entries reach d/ε: with ε at 2⁻²³ a rounding of the spectrum is seen a million times larger.
        bound = 1e-6 if shrinkage >= 1e-3 else 1e-3
        assert (gradient - exact).norm() <= bound * (1 + exact.norm())
    single, _ = fused(hidden, weight, labels, config, torch.float32)
    assert torch.isfinite(single.loss)


@pytest.mark.parametrize("seed", [0, 3, 10])
def test_a_singular_density_in_float32_without_shrinkage(seed):
    """Two rows in seven dimensions: the smallest eigenvalues are ε/d = 2e-8, which products in float32 would lose."""
    inputs = problem(2, 2, 7, 0.0, seed)
    config = MatrixLossConfig(kind="marginal", shrinkage=0.0)
    single, exact = fused(*inputs, config, torch.float32)[0].loss, fused(*inputs, config)[0].loss
    assert number(single) == pytest.approx(number(exact), rel=1e-4)


@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
@pytest.mark.parametrize("logit", [1e4, -1e4, 0.0])
def test_saturated_and_uniform_predictions_in_float32(kind, logit):
    hidden, weight = torch.full((4, 1), logit), torch.tensor([[1.0], [0.5], [0.25], [-1.0]])
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    config = MatrixLossConfig(kind=kind, support=2)
    labels = torch.tensor([0, 1, 2, 3])
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    output = linear_matrix_cross_entropy(*leaves, labels, config, embeddings=table)
    for gradient in torch.autograd.grad(output.loss, leaves):
        assert torch.isfinite(gradient).all()
    logits = hidden.detach().double() @ weight.detach().double().T
    geometry = TokenGeometry.from_table(table.double(), config)
    exact = reference_matrix_cross_entropy(logits, labels, geometry, config)
    # Uniform logits tie, so which two tokens are kept is a matter of sorting.
    if logit != 0 or kind != "token":
        assert number(output.matrix_cross_entropy) == pytest.approx(number(exact), rel=1e-4)


def test_duplicate_zero_and_excluded_rows():
    hidden, weight, labels = problem()
    weight[3] = weight[4]
    weight[5] = 0
    mask = torch.ones(23, dtype=torch.bool)
    mask[20:] = False
    for config in KINDS:
        output, gradients = fused(hidden, weight, labels % 20, config, token_mask=mask)
        geometry = TokenGeometry.from_table(weight, config, mask)
        exact = reference_matrix_cross_entropy(hidden @ weight.T, labels % 20, geometry, config)
        assert number(output.matrix_cross_entropy) == pytest.approx(number(exact), rel=1e-10)
        assert all(torch.isfinite(g).all() for g in gradients)


def test_krylov_order_converges_to_the_exact_loss_from_below():
    hidden, weight, labels = problem(tokens=40, vocabulary=200, width=24, masked=False)
    exact = reference(hidden, weight, labels, MatrixLossConfig(support=None))
    values, errors = [], []
    for order in (1, 2, 4, 8, 16):
        output, gradients = fused(hidden, weight, labels, MatrixLossConfig(support=None, order=order))
        values.append(number(output.matrix_cross_entropy))
        errors.append(number((gradients[0] - exact[1][0]).norm() / exact[1][0].norm()))
    assert values == sorted(values)
    assert values[-1] <= number(exact[0][2]) + 1e-12
    assert errors[-1] < 1e-3 < errors[0]
    assert errors == sorted(errors, reverse=True)


def test_order_one_is_the_closed_form():
    hidden, weight, labels = problem(masked=False)
    config = MatrixLossConfig(support=None, order=1)
    rows = TokenGeometry.from_table(weight, config).all_rows()
    q = (hidden @ weight.T).softmax(-1)
    quadratic = (1 - 0.05) * (q * (rows @ rows[labels].T).T.square()).sum(-1) + 0.05 / 6
    output, _ = fused(hidden, weight, labels, config)
    assert number(output.matrix_cross_entropy) == pytest.approx(
        number((1 - quadratic.log()).mean()), rel=1e-12
    )


def test_support_of_the_whole_vocabulary_is_the_full_form():
    inputs = problem()
    full = fused(*inputs, MatrixLossConfig(support=None, order=6))
    same = fused(*inputs, MatrixLossConfig(support=23, order=6))
    nearly = fused(*inputs, MatrixLossConfig(support=22, order=6))
    assert number(full[0].loss) == number(same[0].loss)
    assert number(nearly[0].loss) == pytest.approx(number(full[0].loss), rel=1e-3)


def test_orthonormal_rows_give_smoothed_cross_entropy_plus_one():
    labels = torch.tensor([0, 6, 2, 2, 5])
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    config = MatrixLossConfig(center=False)
    eye = torch.eye(7, dtype=torch.float64)
    output = linear_matrix_cross_entropy(logits, eye, labels, config)
    q_y = logits.softmax(-1)[torch.arange(5), labels]
    assert number(output.matrix_cross_entropy) == pytest.approx(
        number((1 - (0.95 * q_y + 0.05 / 7).log()).mean()), abs=1e-12
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("support", [3, 12])
def test_a_vocabulary_large_enough_for_the_grouped_search(support, dtype):
    """Thousands of tokens, not a multiple of the group; every second target is its own most probable token."""
    hidden, weight, labels = problem(tokens=24, vocabulary=1999, width=20, scale=0.5)
    labels[1::2] = (hidden @ weight.T).argmax(-1)[1::2]
    config = MatrixLossConfig(support=support, order=20)
    assert_same(
        fused(hidden, weight, labels, config, dtype), reference(hidden, weight, labels, config), dtype
    )


def test_a_common_direction_does_not_cost_digits():
    """Rows that share a direction a hundred times their differences: float32 has two digits fewer, not four."""
    hidden, weight, labels = problem(vocabulary=150, width=16)
    weight = weight + 100
    weight, hidden = weight.float().double(), hidden.float().double() * 0.05
    config = MatrixLossConfig(support=12, order=16)
    exact, _ = reference(hidden, weight, labels, config)
    output, _ = fused(hidden, weight, labels, config, torch.float32)
    assert number(output.matrix_cross_entropy) == pytest.approx(number(exact[2]), rel=1e-3)


def test_details_say_what_the_approximation_costs():
    inputs = problem(vocabulary=200, width=24)
    coarse = fused(*inputs, MatrixLossConfig(support=5, order=2), details=True)[0].details
    fine = fused(*inputs, MatrixLossConfig(support=200, order=24), details=True)[0].details
    assert 0 < coarse["tail_mass"] < 1
    assert coarse["quadrature_gap"] > 1e-4
    assert number(fine["tail_mass"]) == pytest.approx(0, abs=1e-12)
    assert abs(number(fine["quadrature_gap"])) < 1e-9
    assert fused(*inputs, MatrixLossConfig())[0].details == {}
