"""What the fused losses hold: at most one chunk of logits, and no copy of the table."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mce_llm.lm import MatrixLossConfig, linear_matrix_cross_entropy

TOKENS, VOCABULARY, WIDTH, CHUNK = 96, 700, 12, 8
CONFIGS = {
    "weight 0": MatrixLossConfig(weight=0.0),
    "support": MatrixLossConfig(support=5, order=3),
    "full": MatrixLossConfig(support=None, order=3),
    "marginal": MatrixLossConfig(kind="marginal"),
    "expected": MatrixLossConfig(kind="expected"),
    "label smoothing": MatrixLossConfig(loss="label_smoothing"),
    "emo": MatrixLossConfig(loss="emo"),
}


class LargestTensor(TorchDispatchMode):
    """Notes the largest storage that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


def problem():
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,))


def largest(loss, hidden, weight):
    loss().backward()  # the poles of the logarithm are computed once
    with LargestTensor() as seen:
        loss().backward()
    hidden.grad = weight.grad = None
    return seen.elements


@pytest.mark.parametrize("name", CONFIGS)
def test_never_holds_more_than_a_chunk(name):
    hidden, weight, labels = problem()
    config = CONFIGS[name]
    seen = largest(
        lambda: linear_matrix_cross_entropy(hidden, weight, labels, config, chunk_size=CHUNK).loss,
        hidden,
        weight,
    )
    # Over the full vocabulary a chunk has one product with each Krylov vector.
    chunk = CHUNK * VOCABULARY * (3 if name == "full" else 1)
    assert seen == max(chunk, VOCABULARY * WIDTH)  # dW has the size of the table


def test_the_plain_loss_holds_all_logits():
    hidden, weight, labels = problem()
    assert (
        largest(lambda: F.cross_entropy(F.linear(hidden, weight), labels), hidden, weight)
        >= TOKENS * VOCABULARY
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_frozen_head_needs_nothing_of_its_size(name):
    hidden, weight, labels = problem()
    weight.requires_grad_(False)
    seen = largest(
        lambda: linear_matrix_cross_entropy(hidden, weight, labels, CONFIGS[name], chunk_size=1).loss,
        hidden,
        weight,
    )
    # The table is detached, not copied; blocks of a small table are all of it.
    assert seen <= VOCABULARY * WIDTH
    assert weight.grad is None
