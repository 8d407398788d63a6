"""Cross-entropy, alone or with the matrix loss of the kind `token`, chunk by chunk in Triton kernels.

Between two passes over the logits of a chunk there are only the numbers of kept tokens: no probabilities, no Gram
matrices in memory for longer than they are used, and nothing that the host waits for. All other losses, and devices
without Triton, take the same mathematics in torch's own operations (`loss_terms`).
Legend: C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.kernels.launching import VARIABLE, KernelChoiceError, chosen, runs_on
from mce_llm.lm.kernels.row_softmax import logit_gradient, row_statistics
from mce_llm.lm.kernels.token_chunk import fused_token_chunk
from mce_llm.lm.kernels.token_form import supports
from mce_llm.lm.linear_head import LinearHead


def kernel_loss(
    config: MatrixLossConfig, geometry: TokenGeometry | None, head: LinearHead, *, details: bool
) -> KernelLoss | None:
    """The loss by kernels.

    Args:
        config: The settings; `ce`, or `mce` of the kind `token`.
        geometry: The token rows; None where the loss is cross-entropy alone.
        head: The output head; its device and dtype are read.
        details: Report what the approximations of the kind `token` cost.

    Returns:
        None where there are no kernels for this loss, dtype or device, or the environment asks for none.

    Raises:
        KernelChoiceError: The environment asks for kernels alone, and this loss would have them elsewhere.
    """
    choice, device = chosen(), head.weight_VD.device
    in_kernels = config.objective == "ce" or (config.objective == "mce" and config.kind == "token")
    if choice == "torch" or not in_kernels:
        return None
    usable = head.weight_VD.dtype != torch.float64 and (
        runs_on(device) if geometry is None else supports(config, geometry)
    )
    if choice == "triton" and not usable:
        raise KernelChoiceError(
            f"{VARIABLE} is triton, and there are no kernels for {head.weight_VD.dtype} on {device.type} with {config}: they "
            "need Triton and a CUDA or ROCm device, 16 or 32 bits, normalised rows, a support of 1 to 128, an order up to "
            f"16 and a shrinkage that is not tiny; {VARIABLE}=auto takes them where they are"
        )
    return KernelLoss(config, geometry, head, details) if usable else None


class KernelLoss:
    """Collects the chunks of one call; see `kernel_loss`."""

    def __init__(
        self, config: MatrixLossConfig, geometry: TokenGeometry | None, head: LinearHead, details: bool
    ) -> None:
        self._config, self._geometry, self._head, self._details = config, geometry, head, details
        # Summed up at the end, so that a chunk has no launches for it.
        self._cross_entropies: list[Tensor] = []
        self._values: list[Tensor] = []
        self._tails: list[Tensor] = []
        self._gaps: list[Tensor] = []

    def add(self, logits_CV: Tensor, labels_C: Tensor, gradient_CV: Tensor | None) -> None:
        """Take in one chunk.

        Args:
            logits_CV: float32, through scale and softcap; overwritten where they are `gradient_CV` too.
            labels_C: Target ids, none ignored.
            gradient_CV: Where ∂(CE + λ·MCE)/∂(H Wᵀ + b) goes, in its own dtype; None for no gradient.
        """
        head = self._head
        if self._geometry is None:
            rows = row_statistics(logits_CV, labels_C, maxima=False)
            self._cross_entropies.append(rows.cross_entropy_C)
            if gradient_CV is not None:
                logit_gradient(
                    logits_CV,
                    labels_C,
                    rows,
                    torch.ones_like(rows.norm_C),
                    None,
                    None,
                    gradient_CV,
                    logit_scale=head.logit_scale,
                    softcap=head.softcap,
                )
            return
        found = fused_token_chunk(
            logits_CV,
            labels_C,
            self._geometry,
            self._config,
            gradient_CV=gradient_CV,
            gap=self._details,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
        )
        self._cross_entropies.append(found.cross_entropy_C)
        self._values.append(found.value_C)
        if found.gap_C is not None:
            self._tails.append(found.tail_mass_C)
            self._gaps.append(found.gap_C)

    def cross_entropy(self) -> Tensor:
        """Σ −log q_y over all positions, nats."""
        return self._sum(self._cross_entropies)

    def matrix(self) -> Tensor:
        """Σ MCE over all positions, nats."""
        return self._sum(self._values)

    def approximations(self) -> dict[str, Tensor]:
        """Σ δ and Σ (value − value at one order less) over all positions, by the names that `LossOutput` has for them."""
        return {"tail_mass": self._sum(self._tails), "quadrature_gap": self._sum(self._gaps)}

    def _sum(self, chunks: list[Tensor]) -> Tensor:
        if not chunks:
            return torch.zeros((), device=self._head.weight_VD.device)
        return torch.cat(chunks).sum()
