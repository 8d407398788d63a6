"""The fused loss against the dense references in float64: values, gradients, odd shapes, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mce_llm.lm import (
    LossInputError,
    MatrixLossConfig,
    TokenGeometry,
    linear_matrix_cross_entropy,
    reference_matrix_cross_entropy,
)

# float64: rounding of a few hundred operations. float32: the same at 6e-8 a step, through logarithms of
# eigenvalues down to ε/d; measured 1e-6 at most on these sizes.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}

KINDS = [
    MatrixLossConfig(kind="token", support=None, order=32),
    MatrixLossConfig(kind="token", support=7, order=32, weight=0.3),
    MatrixLossConfig(kind="token", support=7, order=32, normalize=False),
    MatrixLossConfig(kind="token", support=None, order=32, normalize=False, center=False, shrinkage=0.3),
    MatrixLossConfig(kind="marginal"),
    MatrixLossConfig(kind="marginal", normalize=False, center=False, weight=2.0),
    MatrixLossConfig(kind="expected"),
    MatrixLossConfig(kind="expected", normalize=False, weight=0.1),
    MatrixLossConfig(weight=0.0),
]


def number(scalar):
    return scalar.item()


def problem(tokens=13, vocabulary=23, width=6, scale=2.0, seed=0, masked=True):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64) + 0.5
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    if masked and tokens > 1:
        labels[::3] = -100
    return hidden, weight, labels


def reference(hidden, weight, labels, config, bias=None, num_items=None, softcap=None, scale=1.0, table=None):
    """Loss, parts and gradients by autograd through dense float64 matrices."""
    leaves = [t.clone().requires_grad_() for t in (hidden, weight) if t is not None]
    if bias is not None:
        leaves.append(bias.clone().requires_grad_())
    logits = F.linear(*leaves) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    geometry = TokenGeometry.from_table(weight if table is None else table, config)
    count = (labels != -100).sum().double()
    share = 1.0 if num_items is None else count / num_items
    cross_entropy = F.cross_entropy(logits, labels) * share
    matrix = reference_matrix_cross_entropy(logits, labels, geometry, config) * share
    loss = cross_entropy + config.weight * matrix
    return (loss, cross_entropy, matrix), torch.autograd.grad(loss, leaves)


def fused(hidden, weight, labels, config, dtype=torch.float64, bias=None, **options):
    leaves = [t.clone().to(dtype).requires_grad_() for t in (hidden, weight)]
    if bias is not None:
        leaves.append(bias.clone().to(dtype).requires_grad_())
        options["bias"] = leaves[-1]
    output = linear_matrix_cross_entropy(leaves[0], leaves[1], labels, config, **options)
    return output, torch.autograd.grad(output.loss, leaves)


def assert_same(ours, theirs, dtype):
    output, gradients = ours
    parts, expected = theirs
    tolerance = TOLERANCE[dtype]
    for value, part in zip(
        (output.loss, output.cross_entropy, output.matrix_cross_entropy), parts, strict=True
    ):
        assert number(value) == pytest.approx(number(part), rel=tolerance, abs=tolerance)
    for gradient, exact in zip(gradients, expected, strict=True):
        error = (gradient.double() - exact).norm() / exact.norm().clamp_min(1e-12)
        assert error < 10 * tolerance


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}-{c.support}-{c.normalize}-{c.weight}")
def test_equals_the_reference(config, dtype):
    inputs = problem()
    bias = torch.randn(23, dtype=torch.float64)
    assert_same(
        fused(*inputs, config, dtype, bias=bias, chunk_size=4), reference(*inputs, config, bias=bias), dtype
    )


@pytest.mark.parametrize("config", KINDS[:1] + KINDS[4:5] + KINDS[6:7], ids=lambda c: c.kind)
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
@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}-{c.support}-{c.normalize}-{c.weight}")
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


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}-{c.support}-{c.normalize}-{c.weight}")
def test_all_labels_ignored_gives_a_connected_zero(config):
    hidden, weight, labels = problem()
    output, gradients = fused(hidden, weight, torch.full_like(labels, -100), config)
    assert number(output.loss) == number(output.cross_entropy) == number(output.matrix_cross_entropy) == 0
    assert output.num_tokens == 0
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}-{c.support}-{c.normalize}-{c.weight}")
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
