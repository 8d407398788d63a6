"""Softmax and gradient of rows of logits against float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from helpers.kernels import DEVICE, needs_kernels, relative_error
from mce_llm.lm.kernels.row_softmax import logit_gradient, row_statistics
from mce_llm.lm.top_tokens import GROUP

pytestmark = needs_kernels


def rows(size, scale=3.0, positions=3):
    generator = torch.Generator().manual_seed(size)
    logits = scale * torch.randn(positions, size, generator=generator)
    return logits.to(DEVICE), torch.randint(size, (positions,), generator=generator).to(DEVICE)


# 4,096 columns are read at a time.
@pytest.mark.parametrize("size", [1, 63, 64, 100, 4096, 9001])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_statistics(size, scale):
    logits, labels = rows(size, scale)
    found = row_statistics(logits, labels, maxima=True)
    exact = F.cross_entropy(logits.double(), labels, reduction="none").cpu()
    assert relative_error(found.cross_entropy_C, exact) <= 2e-7
    assert torch.equal(found.largest_C, logits.amax(dim=-1))
    whole = size // GROUP * GROUP
    maxima = logits[:, :whole].unflatten(-1, (-1, GROUP)).amax(dim=-1) if whole else logits[:, :0]
    assert torch.equal(found.maxima_CG, maxima)
    norm = (logits.double() - logits.double().amax(dim=-1, keepdim=True)).exp().sum(dim=-1)
    assert relative_error(found.norm_C, norm.cpu()) <= 1e-6
    assert row_statistics(logits, labels, maxima=False).maxima_CG is None


def test_every_second_row():
    logits, labels = rows(5000, positions=6)
    exact = F.cross_entropy(logits[::2].double(), labels[::2], reduction="none").cpu()
    found = row_statistics(logits[::2], labels[::2], maxima=False)
    assert relative_error(found.cross_entropy_C, exact) <= 2e-7


def test_tokens_that_are_ruled_out():
    """−∞ over whole blocks of columns, the first among them."""
    logits, labels = rows(9001)
    logits[0, :4500] = -math.inf
    logits[1, 3000:] = -math.inf
    labels[:] = torch.tensor([4700, 17, 4])
    exact = logits.double().requires_grad_()
    cross_entropy = F.cross_entropy(exact, labels, reduction="none")
    cross_entropy.sum().backward()
    found = row_statistics(logits, labels, maxima=False)
    assert relative_error(found.cross_entropy_C, cross_entropy.detach().cpu()) <= 2e-7
    gradient = logit_gradient(logits, labels, found, torch.ones(3, device=DEVICE), None, None, logits)
    assert relative_error(gradient, exact.grad.cpu()) <= 1e-6


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_own_row_alone(bad):
    logits, labels = rows(5000)
    logits[1, 4900] = bad
    found = row_statistics(logits, labels, maxima=False)
    assert torch.isfinite(found.cross_entropy_C).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])  # None: in the place of the logits
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_gradient(dtype, softcap):
    """Kept tokens in several blocks and at their ends; a label among them, one beside them, one in another block."""
    logits, labels = rows(9001)
    labels[:] = torch.tensor([4095, 5, 8999])
    kept = torch.tensor([[0, 4095, 4096, 8191, 9000], [4, 6, 7, 8, 9000], [8, 9, 10, 11, 12]], device=DEVICE)
    generator = torch.Generator().manual_seed(0)
    factor = torch.rand(3, generator=generator).to(DEVICE) + 0.5
    kept_factor = 3 * torch.randn(3, 5, generator=generator).to(DEVICE)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    q = logits.double().softmax(dim=-1)
    expected = (q * factor.double().unsqueeze(-1)).scatter(1, kept, q.gather(1, kept) * kept_factor.double())
    expected -= F.one_hot(labels, 9001)
    if softcap is not None:
        expected *= 1 - (logits.double() / softcap).square()
    expected *= 0.5
    statistics = row_statistics(logits, labels, maxima=False)
    out = logits if dtype is None else torch.full_like(logits, math.nan, dtype=dtype)
    found = logit_gradient(
        logits, labels, statistics, factor, kept, kept_factor, out, logit_scale=0.5, softcap=softcap
    )
    assert found is out
    # bfloat16 has 8 bits; the interpreter cuts the others off.
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-6
    assert relative_error(found, expected.cpu()) <= tolerance
    at_label = found.cpu().double().gather(1, labels.cpu().unsqueeze(1))
    assert relative_error(at_label, expected.cpu().gather(1, labels.cpu().unsqueeze(1))) <= tolerance


def test_gradient_of_cross_entropy_alone():
    logits, labels = rows(700)
    exact = logits.double().requires_grad_()
    F.cross_entropy(exact, labels, reduction="sum").backward()
    statistics = row_statistics(logits, labels, maxima=False)
    found = logit_gradient(logits, labels, statistics, torch.ones(3, device=DEVICE), None, None, logits)
    assert relative_error(found, exact.grad.cpu()) <= 1e-6


def test_no_rows():
    logits, labels = rows(70)
    statistics = row_statistics(logits[:0], labels[:0], maxima=True)
    assert statistics.maxima_CG.shape == (0, 1)
    factor = statistics.norm_C
    assert logit_gradient(logits[:0], labels[:0], statistics, factor, None, None, logits[:0]).shape == (0, 70)
