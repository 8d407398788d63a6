"""CE + λ·MCE of the kernels against dense matrices in float64, on what is hard for the fused losses."""

import pytest
import torch
import torch.nn.functional as F

from helpers.kernels import DEVICE, needs_kernels, relative_error
from helpers.scripts import ROOT, load_script
from mce_llm.lm import MatrixLossConfig, TokenGeometry, reference_matrix_cross_entropy
from mce_llm.lm.kernels.token_chunk import fused_token_chunk

pytestmark = needs_kernels
CASES = [
    "ordinary",
    "one position",
    "d > V",
    "d = 1",
    "duplicate rows",
    "row without direction",
    "logits to ±1e4",
    "one-hot predictions",
    "uniform predictions",
]


def case(name, monkeypatch):
    """A problem of the table of errors, four positions of it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    cases = load_script("benchmarks/loss_accuracy.py").CASES
    assert list(cases) == CASES
    hidden, weight, labels = cases[name]()
    kept = (labels >= 0).nonzero().flatten()[:4]
    return hidden[kept].float(), weight.float(), labels[kept]


def losses(hidden, weight, labels, config, **options):
    """Sums of both losses, gradient in the logits, and the chunk, by the kernels."""
    logits = F.linear(hidden, weight).to(DEVICE)
    geometry = TokenGeometry.from_table(weight.to(DEVICE), config)
    gradient = torch.empty_like(logits)
    chunk = fused_token_chunk(
        logits, labels.to(DEVICE), geometry, config, gradient_CV=gradient, gap=True, **options
    )
    return chunk.cross_entropy_C.sum(), chunk.value_C.sum(), gradient, chunk


def dense(hidden, weight, labels, config):
    """Sums of both losses and the gradient in the logits in float64; logits are those that the kernels are given."""
    logits = F.linear(hidden, weight).double().requires_grad_()
    geometry = TokenGeometry.from_table(weight.double(), config)
    cross_entropy = F.cross_entropy(logits, labels, reduction="sum")
    matrix = reference_matrix_cross_entropy(logits, labels, geometry, config) * len(labels)
    (cross_entropy + config.weight * matrix).backward()
    return cross_entropy.detach(), matrix.detach(), logits.grad


@pytest.mark.parametrize("name", CASES)
def test_equals_dense_matrices(name, monkeypatch):
    """An order high enough to leave no truncation; what float32 leaves is 1e-6 at most in these cases."""
    config = MatrixLossConfig(support=8, order=12, weight=0.7)
    given = case(name, monkeypatch)
    *found, chunk = losses(*given, config)
    for ours, exact in zip(found, dense(*given, config), strict=True):
        assert relative_error(ours, exact) <= 1e-5
    assert (chunk.gap_C >= -1e-5).all()
    assert ((chunk.tail_mass_C >= 0) & (chunk.tail_mass_C <= 1)).all()


def test_a_vocabulary_that_is_ranked_by_groups():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator) for n in (3, 700))
    labels = torch.tensor([5, 699, 640])
    config = MatrixLossConfig(support=4, order=6)
    found = losses(hidden, weight, labels, config)
    for ours, exact in zip(found[:3], dense(hidden, weight, labels, config), strict=True):
        assert relative_error(ours, exact) <= 1e-5


def test_without_gradient_the_logits_stay():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(90, 16, generator=generator).to(DEVICE)
    logits, labels = weight[:2] @ weight.T, torch.tensor([1, 2], device=DEVICE)
    before = logits.clone()
    config = MatrixLossConfig(support=4, order=1)
    geometry = TokenGeometry.from_table(weight, config)
    chunk = fused_token_chunk(logits, labels, geometry, config)
    assert chunk.gap_C is None
    assert torch.equal(logits, before)
