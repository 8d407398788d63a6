"""The head as the fused losses use it: from hidden states to logits, and from logit gradients back.

Legend: N unmasked positions, C positions of a chunk, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mce_llm.lm.float32_products import add_product_, has_float32_products, multiply_


class LinearHead:
    """logits = softcap(scale · (H Wᵀ + b)) of one chunk at a time.

    Args:
        weight_VD: W in the dtype of the products.
        bias_V: b in the same dtype, or None.
        logit_scale: Factor on the logits.
        softcap: c in c·tanh(z/c), applied after the scale; None for none.
    """

    def __init__(
        self, weight_VD: Tensor, bias_V: Tensor | None, logit_scale: float, softcap: float | None
    ) -> None:
        self.weight_VD, self.bias_V = weight_VD, bias_V
        self.logit_scale, self.softcap = logit_scale, softcap

    def buffer(self, positions: int) -> Tensor:
        """(C, V) for the logits of a chunk, at least float32."""
        dtype = torch.promote_types(self.weight_VD.dtype, torch.float32)
        return self.weight_VD.new_empty(positions, self.weight_VD.shape[0], dtype=dtype)

    def logits(self, hidden_CD: Tensor, out: Tensor) -> Tensor:
        """Logits of one chunk, written into the first rows of `out`; not rounded to 16 bits where the device can do so."""
        logits_CV = out[: len(hidden_CD)]
        if self.bias_V is None and has_float32_products(hidden_CD):
            multiply_(logits_CV, hidden_CD, self.weight_VD.T)
        elif hidden_CD.dtype != logits_CV.dtype:
            logits_CV.copy_(F.linear(hidden_CD, self.weight_VD, self.bias_V))
        elif self.bias_V is None:
            torch.mm(hidden_CD, self.weight_VD.T, out=logits_CV)
        else:
            torch.addmm(self.bias_V, hidden_CD, self.weight_VD.T, out=logits_CV)
        if self.logit_scale != 1.0:
            logits_CV.mul_(self.logit_scale)
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_CV

    def through_cap(self, gradient_CV: Tensor, logits_CV: Tensor | None) -> Tensor:
        """∂/∂(H Wᵀ + b) from ∂/∂logits, in place; `logits_CV` is needed with a softcap only."""
        if self.softcap is not None:
            assert logits_CV is not None
            gradient_CV.mul_(logits_CV.div_(self.softcap).square_().neg_().add_(1))
        return gradient_CV if self.logit_scale == 1.0 else gradient_CV.mul_(self.logit_scale)


class HeadGradients:
    """dH, dW and db of the summed loss, collected over chunks; dW and db in at least float32.

    A bfloat16 head whose loss is a single chunk gets dW from one product, which rounds once, and needs no float32 copy
    beside it. In float16 a sum over many positions may overflow before it is divided. Memory is taken with the first
    chunk, after what a loss does before it.

    Args:
        hidden_ND: The hidden states, for shape and dtype of dH.
        weight_VD: The head's weight, for the shape of dW.
        wanted: Whether dH, dW and db are wanted.
        single: All positions come in one chunk.
    """

    def __init__(
        self, hidden_ND: Tensor, weight_VD: Tensor, wanted: tuple[bool, bool, bool], *, single: bool
    ) -> None:
        exact = torch.promote_types(weight_VD.dtype, torch.float32)
        alone = single and weight_VD.dtype == torch.bfloat16
        self._like = (hidden_ND, weight_VD, weight_VD[:, :1].detach().squeeze(-1))
        self._dtypes = (hidden_ND.dtype, weight_VD.dtype if alone else exact, exact)
        self._wanted = wanted
        self._gradients: list[Tensor | None] = [None, None, None]

    def __bool__(self) -> bool:
        return any(self._wanted)

    def _allocate(self, fill: Callable[..., Tensor]) -> None:
        self._gradients = [
            fill(like, dtype=dtype, requires_grad=False) if wanted else None
            for like, dtype, wanted in zip(self._like, self._dtypes, self._wanted, strict=True)
        ]

    def add(self, start: int, hidden_CD: Tensor, gradient_CV: Tensor, head: LinearHead) -> None:
        """Take in ∂L/∂(H Wᵀ + b) of the chunk that begins at position `start`; the first chunk begins at 0."""
        if start == 0:
            self._allocate(torch.empty_like)
        hidden_ND, weight_VD, bias_V = self._gradients
        if bias_V is not None:
            sums_V = gradient_CV.sum(dim=0, dtype=bias_V.dtype)
            bias_V.copy_(sums_V) if start == 0 else bias_V.add_(sums_V)
        gradient_CV = gradient_CV.to(hidden_CD.dtype)
        if hidden_ND is not None:
            here_CD = hidden_ND[start : start + len(hidden_CD)]
            if here_CD.dtype == gradient_CV.dtype:
                torch.mm(gradient_CV, head.weight_VD, out=here_CD)
            else:
                here_CD.copy_(gradient_CV @ head.weight_VD)
        if weight_VD is not None:
            # The first chunk fills the memory, which is then touched once less than if it were zeroed.
            add_product_(weight_VD, gradient_CV.T, hidden_CD, fresh=start == 0)

    def collected(self) -> tuple[Tensor | None, ...]:
        """Gradients of the summed loss, in the order of the inputs; None where none was wanted."""
        if all(gradient is None for gradient in self._gradients):  # there was no chunk
            self._allocate(torch.zeros_like)
        return tuple(self._gradients)
