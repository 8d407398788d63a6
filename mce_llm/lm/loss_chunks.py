"""How many positions the fused loss works on at a time."""

from __future__ import annotations

from torch import Tensor

from mce_llm.lm.chunk_sizes import logit_elements
from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.token_kernel import is_full_vocabulary

_FULL_VOCABULARY_BUFFERS = 3.4  # how many times the elements of a chunk its buffers may have together
# As a share of the logits of all positions, of which ordinary cross-entropy holds 12 bytes each: float32 logits, their
# logarithms and gradients. Ours come in 16 bits once more.
_ALL_LOGITS = 2.5
_TILE = 8


def default_chunk_size(
    weight_VD: Tensor,
    config: MatrixLossConfig,
    positions: int,
    *,
    matrix: bool | None = None,
    memory: float | None = None,
) -> int:
    """Positions a chunk: as many as the buffers may have, spread evenly over the chunks.

    Args:
        weight_VD: The head's weight; its shape and its device are read.
        config: The settings.
        positions: How many there are in all.
        matrix: Whether MCE is computed; by default where the loss has a part of it.
        memory: Bytes of the accelerator, for plans where it is not here.
    """
    elements = logit_elements(weight_VD.device, memory)
    vocabulary = max(weight_VD.shape[0], 1)
    matrix = config.weight != 0 if matrix is None else matrix
    if matrix and config.kind == "token" and is_full_vocabulary(config, vocabulary):
        # Beside the probabilities there are weights and the products with each Krylov vector.
        elements = int(_FULL_VOCABULARY_BUFFERS * elements)
        if (
            weight_VD.device.type != "cpu"
        ):  # where memory is short: no more than the logits of all positions would take
            elements = min(elements, int(_ALL_LOGITS * positions * vocabulary))
        elements //= config.order + 2
    elif (matrix and config.kind == "expected") or config.loss == "emo":
        elements //= 2  # the gradient in q, or the costs, are a chunk of their own
    most = max(1, elements // vocabulary)
    chunks = max(1, -(-positions // most))
    # Whole tiles: a product over 105 rows took as long as one over 120.
    return max(1, -(-positions // (chunks * _TILE))) * _TILE if most >= _TILE else most
