"""The fused loss on a CUDA device against the dense reference in float64 on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from helpers.fused_loss import config_id
from mce_llm.lm import MatrixLossConfig, linear_matrix_cross_entropy, reference_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIGS = [
    MatrixLossConfig(support=16, order=32),
    MatrixLossConfig(support=None, order=32),
    MatrixLossConfig(kind="marginal"),
    MatrixLossConfig(kind="expected"),
    MatrixLossConfig(weight=0.0),
    MatrixLossConfig(loss="label_smoothing"),
    MatrixLossConfig(loss="emo"),
]


def problem(tokens=130, vocabulary=997, width=48):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) + 0.5
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    labels[::3] = -100
    return hidden, weight, labels


def loss_and_gradients(hidden, weight, labels, config):
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss = linear_matrix_cross_entropy(*leaves, labels, config, chunk_size=50).loss
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
def test_equals_the_reference(config, tf32):
    """Also where TF32 is on for the model: then the logits are the model's own, and the matrix part still exact."""
    hidden, weight, labels = problem()
    exact = [t.double().requires_grad_() for t in (hidden, weight)]
    logits = F.linear(*exact)
    loss = reference_loss(logits, labels, exact[1], config)
    expected = loss.detach(), *torch.autograd.grad(loss, exact)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        found = loss_and_gradients(hidden.cuda(), weight.cuda(), labels.cuda(), config)
    finally:
        torch.set_float32_matmul_precision(before)
    tolerance = 5e-3 if tf32 else 5e-5
    for a, b in zip(found, expected, strict=True):
        assert (a.cpu().double() - b).norm() <= tolerance * b.norm()


def test_no_more_memory_than_a_chunk():
    """A vocabulary of 64k for 4,096 positions: all logits would be 1 GiB in float32."""
    hidden = torch.randn(4096, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(65536, 256, device="cuda", dtype=torch.bfloat16)
    labels = torch.randint(65536, (4096,), device="cuda")
    loss_and_gradients(hidden, weight, labels, MatrixLossConfig())
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss_and_gradients(hidden, weight, labels, MatrixLossConfig())
    assert torch.cuda.max_memory_allocated() - before < 4096 * 65536 * 4 / 2
