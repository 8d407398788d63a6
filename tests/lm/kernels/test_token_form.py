"""The quadratic form of the kernels against the same recurrence in float64, with eigenvectors."""

import dataclasses
import math

import pytest
import torch

from helpers.kernels import DEVICE, needs_kernels
from mce_llm.lm import MatrixLossConfig, TokenGeometry
from mce_llm.lm.kernels import token_form
from mce_llm.lm.kernels.token_form import fused_token_form, supports
from mce_llm.matrix.krylov import log_quadratic_form
from mce_llm.matrix.log_approximation import ApproximationError

EPSILON = 0.05


def problem(vocabulary, width, kept, dtype=torch.float32, rows_without_direction=(), epsilon=EPSILON):
    """A geometry, and ids, weights and shifts of four positions: flat, peaked, target outside, target kept and sure."""
    generator = torch.Generator().manual_seed(vocabulary + width)
    table = torch.randn(vocabulary, width, generator=generator) + 2 * torch.randn(width, generator=generator)
    mask = torch.ones(vocabulary, dtype=torch.bool)
    mask[list(rows_without_direction)] = False
    config = MatrixLossConfig(support=kept, shrinkage=epsilon)
    geometry = TokenGeometry.from_table(table.to(dtype), config, mask)
    labels = torch.randint(vocabulary, (4,), generator=generator)
    logits = torch.randn(4, vocabulary, generator=generator) * torch.tensor([[0.1], [9.0], [3.0], [1.0]])
    logits[2, labels[2]] = -99
    logits[3, labels[3]] = 20
    q, ids = logits.softmax(dim=-1).topk(kept)
    weights = (1 - epsilon) * q * geometry.has_direction_V[ids]
    shift = (1 - weights.sum(dim=-1)).clamp_min(epsilon) / width
    is_target = ids == labels.unsqueeze(-1)
    weights = torch.cat([(weights * is_target).sum(-1, keepdim=True), weights * ~is_target], dim=-1)
    return geometry, torch.cat([labels.unsqueeze(-1), ids], dim=-1), weights, shift


def fused(geometry, ids, weights, shift, order=8, gap=False, epsilon=EPSILON):
    """Value, gradient, trace and value before of the kernels, on the CPU."""
    moved = [
        getattr(geometry, field.name).to(DEVICE) if DEVICE.type != "cpu" else getattr(geometry, field.name)
        for field in dataclasses.fields(geometry)
    ]
    form = fused_token_form(
        TokenGeometry(*moved),
        *(t.to(DEVICE) for t in (ids, weights, shift)),
        order=order,
        shrinkage_floor=epsilon / geometry.width,
        gap=gap,
    )
    parts = (form.value_C, form.gradient_CF, form.trace_C, form.previous_C)
    return tuple(None if part is None else part.cpu() for part in parts)


def exact(geometry, ids, weights, shift, order=8, epsilon=EPSILON):
    """The same from the torch form in float64; rows as the geometry says, in float64 too."""
    rows = (geometry.table_VD.double() - geometry.mean_D.double())[ids]
    length = rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    rows = torch.where(geometry.has_direction_V[ids].unsqueeze(-1), rows / length, 0)
    weights, shift = weights.double(), shift.double().unsqueeze(-1)
    start = torch.zeros_like(weights)
    start[:, 0] = 1
    form = log_quadratic_form(
        lambda c, products: torch.addcmul(shift * c, weights, products),
        start,
        order,
        shift=epsilon / geometry.width,
        gram=rows @ rows.mT,
    )
    gradient = ((form.core @ form.duals) * form.duals).sum(dim=1)
    return form.value, gradient, form.core.diagonal(dim1=-2, dim2=-1).sum(-1), form.previous


# float32 rows of length one leave 1e-7 in a Gram matrix, which the smallest eigenvalues (ε/d) magnify; the largest
# error measured on these problems is 2e-6.
def assert_same(found, expected, tolerance=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None:
            # Values near zero, as those of sure predictions, are differences of numbers near one.
            assert (ours.double() - theirs).norm() <= tolerance * max(float(theirs.norm()), 0.1)


@needs_kernels
@pytest.mark.parametrize(
    ("dtype", "vocabulary", "width", "kept", "order"),
    [
        (torch.bfloat16, 60, 96, 16, 8),
        (torch.float16, 50, 33, 5, 3),
        (torch.float32, 30, 7, 20, 16),  # more frame vectors than dimensions: a singular Gram matrix
        (torch.float32, 80, 600, 64, 1),  # more columns than a slab
        (torch.float32, 20, 1, 3, 2),
    ],
)
def test_equals_the_eigendecomposition_in_float64(dtype, vocabulary, width, kept, order):
    given = problem(vocabulary, width, kept, dtype)
    found = fused(*given, order=order, gap=True)
    assert (found[3] is None) == (order == 1)
    assert_same(found, exact(*given, order=order))


@needs_kernels
def test_rows_without_direction_count_as_zero():
    """In the frame, as one of its weights, and as the label, whose form is zero."""
    given = problem(40, 24, 9, rows_without_direction=range(0, 40, 2))
    given[1][0, 0] = 2  # the label
    assert not given[0].has_direction_V[given[1]].all()
    found = fused(*given, gap=True)
    assert_same(found, exact(*given))
    assert found[0][0] == 0
    assert not found[1][0].any()


@needs_kernels
def test_a_one_hot_row_breaks_down_at_once_and_is_exact():
    geometry, ids, weights, shift = problem(40, 24, 6)
    weights[:] = 0
    weights[0, 0] = 1 - EPSILON  # the target
    weights[1, 2] = 1 - EPSILON  # another token
    shift[:] = EPSILON / 24
    value, gradient, _, previous = fused(geometry, ids, weights, shift, gap=True)
    assert value[0] == pytest.approx(-math.log(1 - EPSILON + EPSILON / 24), abs=5e-7)
    assert gradient[0, 0] == pytest.approx(-1 / (1 - EPSILON + EPSILON / 24), rel=1e-5)
    assert value[2:] == pytest.approx(torch.full((2,), -math.log(EPSILON / 24)), rel=1e-6)
    assert previous == pytest.approx(value, abs=5e-7)
    assert_same((value, gradient), exact(geometry, ids, weights, shift)[:2])


@needs_kernels
def test_copies_of_a_row_are_one_direction():
    geometry, ids, weights, shift = problem(40, 24, 6)
    geometry.table_VD[ids[1, 1:4]] = geometry.table_VD[ids[1, 0]].clone()
    geometry = TokenGeometry.from_table(geometry.table_VD, MatrixLossConfig())
    assert_same(fused(geometry, ids, weights, shift), exact(geometry, ids, weights, shift))


@needs_kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_own_row_alone(broken):
    geometry, ids, weights, shift = problem(40, 24, 6)
    expected = fused(geometry, ids, weights, shift)[0]
    weights[1, 3] = broken
    value, gradient, trace, _ = fused(geometry, ids, weights, shift)
    assert torch.isnan(value).tolist() == torch.isnan(trace).tolist() == [False, True, False, False]
    assert torch.equal(value[[0, 2, 3]], expected[[0, 2, 3]])
    assert torch.isnan(gradient[1]).all()


@needs_kernels
@pytest.mark.parametrize("strides", [(2**31 + 64, 1), (1, 300)])
def test_any_strides_of_the_table(strides):
    """A row that begins beyond 2³¹ elements, as those of large tables do, and a table that is a transpose."""
    geometry, ids, weights, shift = problem(40, 24, 6, torch.bfloat16)
    geometry = dataclasses.replace(geometry, table_VD=geometry.table_VD[:2].to(DEVICE))
    ids %= 2
    expected = fused(geometry, ids, weights, shift)
    extent = sum(stride * (size - 1) for stride, size in zip(strides, (2, 24), strict=True)) + 1
    # Memory that is never written to is not there: 4 GiB of addresses are 4 KiB.
    storage = torch.empty(extent, dtype=torch.bfloat16, device=DEVICE)
    far = storage.as_strided((2, 24), strides).copy_(geometry.table_VD)
    found = fused(dataclasses.replace(geometry, table_VD=far), ids, weights, shift)
    for a, b in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(a, b)


@needs_kernels
def test_positions_beyond_a_block_of_gram_matrices(monkeypatch):
    given = problem(40, 24, 6)
    expected = fused(*given, gap=True)
    monkeypatch.setattr(token_form, "_GRAM_ELEMENTS", 3 * 16**2)
    for a, b in zip(fused(*given, gap=True), expected, strict=True):
        assert torch.equal(a, b)


@needs_kernels
def test_no_positions():
    geometry, ids, weights, shift = problem(40, 24, 6)
    value, gradient, trace, previous = fused(geometry, ids[:0], weights[:0], shift[:0], gap=True)
    assert value.shape == trace.shape == previous.shape == (0,)
    assert gradient.shape == (0, 7)


@needs_kernels
@pytest.mark.parametrize(
    ("settings", "table", "answer"),
    [
        ({}, torch.float32, True),
        ({"support": 128, "order": 16}, torch.bfloat16, True),
        ({"support": None}, torch.float32, False),
        ({"support": 129}, torch.float32, False),
        ({"support": 200}, torch.float32, False),
        ({"order": 17}, torch.float32, False),
        ({"normalize": False}, torch.float32, False),
        ({"shrinkage": 2.0**-23}, torch.float32, False),
        ({}, torch.float64, False),
    ],
)
def test_says_what_it_can_do(settings, table, answer):
    config = MatrixLossConfig(**{"support": 64} | settings)
    rows = torch.randn(150, 12, generator=torch.Generator().manual_seed(0)).to(DEVICE, table)
    assert supports(config, TokenGeometry.from_table(rows, config)) is answer


@needs_kernels
def test_refuses_a_floor_without_poles():
    with pytest.raises(ApproximationError, match=r"1.0e-09, the limit 1.2e-07: ask `supports` first"):
        fused(*problem(40, 24, 6), epsilon=24e-9)


@pytest.mark.parametrize("width", [1, 2, 16, 1000, 4096, 16384, 2**20])
def test_rows_are_given_lengths_that_float16_holds(width):
    """At most the largest number in one entry, and in the mean enough for what rounding leaves to be normal."""
    length = token_form.lift(width)
    assert math.log2(length).is_integer()
    assert length <= 2**15
    assert length / math.sqrt(width) >= 2**5
