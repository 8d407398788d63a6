"""The fused loss by kernels against the same loss in torch's own operations."""

import pytest
import torch

from helpers.fused_loss import number
from helpers.kernels import DEVICE, needs_kernels, relative_error
from mce_llm.lm import MatrixLossConfig, kernel_loss, linear_matrix_cross_entropy
from mce_llm.lm.kernels.launching import VARIABLE

TOKENS, VOCABULARY, WIDTH = 21, 300, 24
TOKEN = MatrixLossConfig(support=8, order=6, weight=0.7)
ALONE = MatrixLossConfig(weight=0.0)


@pytest.fixture
def loss(monkeypatch):
    """Loss and gradients by kernels, or without them."""

    def compute(choice, config, dtype=torch.float32, *, mask=False, frozen=False, given=None, **options):
        monkeypatch.setenv(VARIABLE, choice)
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(TOKENS, WIDTH, generator=generator)
        weight = 0.3 * torch.randn(VOCABULARY, WIDTH, generator=generator)
        bias = torch.randn(VOCABULARY, generator=generator)
        leaves = [t.to(DEVICE, dtype).requires_grad_() for t in (hidden, weight, bias)]
        leaves[1].requires_grad_(not frozen)
        labels = torch.randint(VOCABULARY - 3, (TOKENS,), generator=generator).to(DEVICE)
        labels[3] = -100
        if mask:
            options["token_mask"] = torch.arange(VOCABULARY, device=DEVICE) < VOCABULARY - 3
        output = linear_matrix_cross_entropy(*leaves[:2], labels, config, bias=leaves[2], **options)
        output.loss.backward()
        return output, [leaf.grad for leaf in leaves]

    return compute


def assert_same(ours, theirs, tolerance):
    (output, gradients), (expected, wanted) = ours, theirs
    for name in ("loss", "cross_entropy", "matrix_cross_entropy"):
        assert number(getattr(output, name)) == pytest.approx(number(getattr(expected, name)), rel=tolerance)
    assert output.details.keys() == expected.details.keys()
    for name, value in output.details.items():
        assert number(value) == pytest.approx(number(expected.details[name]), rel=1e-3, abs=1e-5)
    for gradient, exact in zip(gradients, wanted, strict=True):
        assert (gradient is None) == (exact is None)
        if gradient is not None:
            assert relative_error(gradient, exact.cpu().double()) < tolerance


@needs_kernels
@pytest.mark.parametrize("config", [TOKEN, ALONE])
@pytest.mark.parametrize(
    "options",
    [
        {"details": True},
        {"chunk_size": 7, "details": True},
        {"chunk_size": 7, "logit_scale": 0.5, "softcap": 12.0},
        {"mask": True},
        {"frozen": True, "chunk_size": 4},
        {"num_items": 50},
    ],
)
def test_equals_the_loss_without_kernels(config, options, loss):
    assert_same(loss("triton", config, **options), loss("torch", config, **options), 1e-5)


@needs_kernels
@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("config", [TOKEN, ALONE])
def test_in_bfloat16(config, chunk_size, loss):
    """Gradients of logits are rounded on their way into the products; the interpreter cuts them off instead."""
    ours, theirs = (
        loss(choice, config, torch.bfloat16, chunk_size=chunk_size) for choice in ("triton", "torch")
    )
    assert_same(ours, theirs, 1.5e-2)
    assert number(ours[0].loss) == pytest.approx(number(theirs[0].loss), rel=1e-5)


@needs_kernels
def test_confident_and_frozen_rows(loss):
    """Where Lanczos breaks down at once."""
    config = MatrixLossConfig(support=8, order=12)
    assert_same(loss("triton", config, logit_scale=1000.0), loss("torch", config, logit_scale=1000.0), 2e-5)


@needs_kernels
def test_every_label_ignored(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    hidden, weight = (torch.randn(n, 8, device=DEVICE, requires_grad=True) for n in (4, 30))
    labels = torch.full((4,), -100, device=DEVICE)
    output = linear_matrix_cross_entropy(hidden, weight, labels, MatrixLossConfig(support=4), details=True)
    output.loss.backward()
    assert output.loss == output.matrix_cross_entropy == 0
    assert hidden.grad.abs().max() == weight.grad.abs().max() == 0


@needs_kernels
def test_a_row_that_is_not_a_number_shows_in_the_loss(loss, monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    hidden, weight = torch.randn(4, 8, device=DEVICE), torch.randn(30, 8, device=DEVICE)
    hidden[2] = torch.nan
    labels = torch.arange(4, device=DEVICE)
    output = linear_matrix_cross_entropy(hidden, weight, labels, MatrixLossConfig(support=4))
    assert output.loss.isnan()


@needs_kernels
def test_without_a_choice_kernels_are_taken(loss, monkeypatch):
    taken = []
    own = kernel_loss.KernelLoss.add
    monkeypatch.setattr(kernel_loss.KernelLoss, "add", lambda *args: taken.append(own(*args)))
    loss("auto", TOKEN, chunk_size=7)
    assert len(taken) == 3
    loss("torch", TOKEN)
    assert len(taken) == 3


@needs_kernels
@pytest.mark.parametrize(
    "config",
    [
        MatrixLossConfig(support=8, normalize=False),
        MatrixLossConfig(support=None),
        MatrixLossConfig(support=200),
    ],
)
def test_settings_without_kernels_are_refused_where_nothing_else_is_wanted(config, loss):
    with pytest.raises(ValueError, match="MCE_LLM_KERNELS is triton, and there are no kernels for"):
        loss("triton", config)
    assert torch.isfinite(loss("auto", config)[0].loss)


@pytest.mark.parametrize("config", [MatrixLossConfig(kind="marginal"), MatrixLossConfig(loss="emo")])
def test_losses_that_never_have_kernels_need_no_triton(config, loss):
    assert torch.isfinite(loss("triton", config)[0].loss)


def test_an_unknown_choice_is_refused(loss):
    with pytest.raises(
        ValueError, match=r"must be one of auto, torch, triton, got 'tritn' \(did you mean 'triton'"
    ):
        loss("tritn", TOKEN)
