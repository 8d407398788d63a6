"""The fused loss and dense references in float64, on the same small problems."""

import pytest
import torch
import torch.nn.functional as F

from mce_llm.lm import (
    MatrixLossConfig,
    TokenGeometry,
    linear_matrix_cross_entropy,
    reference_loss,
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
BASELINES = [
    MatrixLossConfig(loss="ce"),
    MatrixLossConfig(loss="label_smoothing"),
    MatrixLossConfig(loss="label_smoothing", smoothing=0.6),
    MatrixLossConfig(loss="emo"),
    MatrixLossConfig(loss="emo", emo_weight=1, emo_max_ratio=0, emo_center=True),
    MatrixLossConfig(loss="emo", emo_weight=0.2, emo_max_ratio=0.7),
]
LOSSES = KINDS + BASELINES


def config_id(config):
    """A name for a test."""
    if config.loss == "mce":
        return f"{config.kind}-{config.support}-{config.normalize}-{config.weight}"
    own = [getattr(config, name) for name in ("smoothing", "emo_weight", "emo_max_ratio", "emo_center")]
    return "-".join([config.loss, *(str(value) for value in own if value is not None)])


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


def reference(
    hidden,
    weight,
    labels,
    config,
    bias=None,
    num_items=None,
    softcap=None,
    scale=1.0,
    table=None,
    token_mask=None,
):
    """Loss, parts and gradients by autograd through dense float64 matrices."""
    leaves = [t.clone().requires_grad_() for t in (hidden, weight) if t is not None]
    if bias is not None:
        leaves.append(bias.clone().requires_grad_())
    logits = F.linear(*leaves) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    table = weight if table is None else table
    count = (labels != -100).sum().double()
    share = 1.0 if num_items is None else count / num_items
    cross_entropy = F.cross_entropy(logits, labels) * share
    geometry = TokenGeometry.from_table(table, config, token_mask)
    matrix = reference_matrix_cross_entropy(logits, labels, geometry, config) * share
    loss = reference_loss(logits, labels, table, config, token_mask) * share
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
