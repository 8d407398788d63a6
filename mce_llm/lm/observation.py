"""The inputs of the output head in one training step, for measurements of the predictions.

Under ZeRO-3 and FSDP the head's weight is whole only while the head's own forward runs, so measuring has to happen
there. A patch whose `observer` is set hands it a `HeadObservation`; nothing here is differentiable or kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.linear_head import LinearHead


@dataclass(frozen=True)
class BatchShape:
    """The size of one forward's input.

    Attributes:
        rows: Sequences.
        length: Positions of each, padding included.
        tokens: Σ of the attention mask, on the device, so that nothing waits for it; rows · length where the model
            was given no mask of that shape.
    """

    rows: int
    length: int
    tokens: Tensor | int

    @classmethod
    def of(cls, hidden_BTD: Tensor, attention_mask: object) -> BatchShape:
        """Read it off the hidden states, (B, T, d), and the attention mask, (B, T) or anything else."""
        rows, length = hidden_BTD.shape[0], hidden_BTD.shape[1]
        if isinstance(attention_mask, Tensor) and attention_mask.shape == (rows, length):
            return cls(rows, length, attention_mask.sum())
        return cls(rows, length, rows * length)


@dataclass(frozen=True)
class HeadObservation:
    """The head's inputs at the unmasked positions of one forward; to be used before the observer returns.

    Attributes:
        hidden_ND: Hidden states that go into the head, detached; N may be 0.
        labels_N: Their targets.
        weight_VD: The head's weight, whole, detached.
        bias_V: Its bias, or None.
        table_VD: The table of the token geometry: the head's weight, or the input embeddings.
        token_mask: (V,) bool, False for rows that are no tokens, or None.
        config: The loss settings in force.
        logit_scale: Factor on the logits.
        softcap: c in c·tanh(z/c), or None.
        dtype: In which the loss multiplies hidden states with the weight; autocast itself is off while an observer
            looks.
    """

    hidden_ND: Tensor
    labels_N: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    table_VD: Tensor
    token_mask: Tensor | None
    config: MatrixLossConfig
    logit_scale: float
    softcap: float | None
    dtype: torch.dtype

    @classmethod
    def of_head(
        cls,
        hidden: Tensor,
        labels: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        table: Tensor | None,
        token_mask: Tensor | None,
        config: MatrixLossConfig,
        logit_scale: float,
        softcap: float | None,
    ) -> HeadObservation:
        """What a head is given: (..., d) hidden states and (...) labels, of which -100 is left out; autocast as it is now."""
        labels_T = labels.reshape(-1)
        kept_N = (labels_T != -100).nonzero().squeeze(-1)
        device_type = hidden.device.type
        autocast = torch.is_autocast_enabled(device_type)
        return cls(
            hidden_ND=hidden.detach().reshape(-1, hidden.shape[-1]).index_select(0, kept_N),
            labels_N=labels_T.index_select(0, kept_N),
            weight_VD=weight.detach(),
            bias_V=None if bias is None else bias.detach(),
            table_VD=(weight if table is None else table).detach(),
            token_mask=token_mask,
            config=config,
            logit_scale=logit_scale,
            softcap=softcap,
            dtype=torch.get_autocast_dtype(device_type) if autocast else hidden.dtype,
        )

    def geometry(self) -> TokenGeometry:
        """The token rows ê; reads the table once."""
        return TokenGeometry.from_table(self.table_VD, self.config, self.token_mask)

    def probabilities(self, positions_S: Tensor, chunk_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Softmax of the logits at some positions, computed in the dtypes that the loss computes it in.

        Args:
            positions_S: (S,) indices into the N positions.
            chunk_size: Positions at a time.

        Yields:
            The positions of a chunk, (C,), and q, (C, V) in at least float32; overwritten by the next chunk.
        """
        bias_V = None if self.bias_V is None else self.bias_V.to(self.dtype)
        head = LinearHead(self.weight_VD.to(self.dtype), bias_V, self.logit_scale, self.softcap)
        buffer_CV = head.buffer(min(chunk_size, len(positions_S)))
        for positions_C in positions_S.split(chunk_size):
            hidden_CD = self.hidden_ND.index_select(0, positions_C).to(self.dtype)
            logits_CV = head.logits(hidden_CD, buffer_CV)
            logits_CV.sub_(logits_CV.amax(dim=-1, keepdim=True)).exp_()
            yield positions_C, logits_CV.div_(logits_CV.sum(dim=-1, keepdim=True))


Observer = Callable[[HeadObservation], None]
