"""Sizes of chunks: by the device's memory, and never more than ordinary cross-entropy would hold."""

import pytest
import torch

from mce_llm.lm import MatrixLossConfig
from mce_llm.lm.chunk_sizes import logit_elements
from mce_llm.lm.loss_chunks import default_chunk_size

META = torch.device("meta")


@pytest.mark.parametrize(
    ("gib", "power"), [(8, 26), (23.6, 26), (39.4, 27), (44.5, 27), (79.1, 28), (139.8, 28)]
)
def test_memory_of_the_card_decides(gib, power):
    assert logit_elements(META, memory=gib * 2**30) == 2**power


def test_a_cpu_has_small_chunks_and_no_card_a_large_one():
    assert logit_elements(torch.device("cpu"), memory=2**50) == logit_elements(torch.device("cpu")) == 2**23
    assert logit_elements(META) == 2**28


@pytest.mark.parametrize("vocabulary", [32_000, 128_256, 262_144])
@pytest.mark.parametrize("positions", [512, 1000, 1024, 2048, 8192])
@pytest.mark.parametrize(
    "config",
    [
        MatrixLossConfig(),
        MatrixLossConfig(support=None),
        MatrixLossConfig(kind="expected"),
        MatrixLossConfig(loss="emo"),
    ],
)
def test_buffers_of_a_chunk_are_less_than_all_logits_of_the_stock_loss(vocabulary, positions, config):
    """Of which it holds 12 bytes each, in float32: logits, their logarithms, and their gradients."""
    head = torch.empty(vocabulary, 8, device=META)
    chunk = default_chunk_size(head, config, positions)
    buffers = {None: config.order + 2}.get(
        config.support, 2 if config.kind == "expected" or config.loss == "emo" else 1
    )
    assert (
        4 * buffers * min(chunk, positions) * vocabulary + 2 * min(chunk, positions) * vocabulary
        <= 12 * positions * vocabulary
    )
    assert min(chunk, positions) * vocabulary <= 2**28 + 8 * vocabulary
