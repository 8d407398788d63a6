"""The head as the fused losses use it: from hidden states to logits, and from logit gradients back.

Legend: N unmasked positions, C positions of a chunk, V vocabulary, D hidden width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
        """Logits of one chunk, written into the first rows of `out`."""
        logits_CV = out[: len(hidden_CD)]
        if hidden_CD.dtype != logits_CV.dtype:
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

    Args:
        hidden_ND: The hidden states, for shape and dtype of dH.
        weight_VD: The head's weight, for the shape of dW.
        wanted: Whether dH, dW and db are wanted.
    """

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, wanted: tuple[bool, bool, bool]) -> None:
        exact = torch.promote_types(weight_VD.dtype, torch.float32)
        self._hidden_ND = torch.empty_like(hidden_ND) if wanted[0] else None
        self._weight_VD = torch.empty_like(weight_VD, dtype=exact) if wanted[1] else None
        self._bias_V = weight_VD.new_zeros(weight_VD.shape[0], dtype=exact) if wanted[2] else None
        if len(hidden_ND) == 0 and self._weight_VD is not None:
            self._weight_VD.zero_()  # no chunk will

    def __bool__(self) -> bool:
        return any(gradient is not None for gradient in self.collected)

    def add(self, start: int, hidden_CD: Tensor, gradient_CV: Tensor, head: LinearHead) -> None:
        """Take in ∂L/∂(H Wᵀ + b) of the chunk that begins at position `start`; the first chunk begins at 0."""
        if self._bias_V is not None:
            self._bias_V += gradient_CV.sum(dim=0)
        gradient_CV = gradient_CV.to(hidden_CD.dtype)
        if self._hidden_ND is not None:
            self._hidden_ND[start : start + len(hidden_CD)] = gradient_CV @ head.weight_VD
        if self._weight_VD is None:
            return
        if self._weight_VD.dtype == hidden_CD.dtype:
            # The first chunk fills the memory, which is then touched once less than if it were zeroed.
            self._weight_VD.addmm_(gradient_CV.T, hidden_CD, beta=0 if start == 0 else 1)
        elif start == 0:
            self._weight_VD.copy_(gradient_CV.T @ hidden_CD)
        else:
            self._weight_VD += gradient_CV.T @ hidden_CD

    @property
    def collected(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of the summed loss, in the order of the inputs; None where none was wanted."""
        return self._hidden_ND, self._weight_VD, self._bias_V
