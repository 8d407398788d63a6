"""Running sums behind the logged means: parts of the loss, and the spectrum of the hidden states.

Sums stay on the device and are reduced over the ranks when a mean is asked for, so a training step pays two
additions and no synchronisation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput

from mce_llm.lm.patched_call import LossParts
from mce_llm.matrix.effective_rank import effective_rank
from mce_llm.matrix.precision import exact_dtype


def prefix_of(*args: Any, metric_key_prefix: str | None = None, **_: Any) -> str:
    """The prefix of an evaluation's metrics, from the arguments of `Trainer.evaluation_loop`.

    Args:
        *args: The positional ones; the fifth is the prefix.
        metric_key_prefix: The prefix, where it was passed by name; `eval` by default.
    """
    return (args[4] if len(args) > 4 else "eval") if metric_key_prefix is None else metric_key_prefix


def with_means(output: EvalLoopOutput, means: dict[str, float], prefix: str) -> EvalLoopOutput:
    """The output of an evaluation with means added to its metrics, under `prefix_name`; they win over what was there."""
    added = {f"{prefix}_{name}": value for name, value in means.items()}
    return output._replace(metrics={**(output.metrics or {}), **added})


def total_loss(means: dict[str, float], weight: float) -> float:
    """CE + λ·MCE, of means over all labels; NaN where there was no label.

    For the kind `token` it is a function of the data alone: neither the size of batches nor the number of ranks is in
    it. What routers add to the loss of training depends on which rows are routed together, and is left out.

    Args:
        means: Of `LossMeter.means_and_reset`.
        weight: λ.
    """
    cross_entropy = means.get("ce_loss", math.nan)
    return cross_entropy + weight * means["mce_loss"] if weight and "mce_loss" in means else cross_entropy


class LossMeter:
    """Means over labels of the parts of the loss since the last reset."""

    _DETAILS = ("tail_mass", "quadrature_gap")

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Set all sums to zero."""
        # Σ CE, Σ MCE, Σ aux_loss · n, Σ details · n; labels, labels with an MCE, with an aux_loss, with details.
        self._sums = torch.zeros(5 + 4, dtype=exact_dtype(self._device), device=self._device)
        self.mark()

    def mark(self) -> None:
        """Keep the present sums for `back`."""
        self._marked = self._sums.clone()

    def back(self) -> None:
        """Return to the sums of the latest mark or reset."""
        self._sums = self._marked.clone()

    def add(self, parts: LossParts) -> None:
        """Take in one forward."""
        count = float(parts.num_tokens)
        zero = self._sums.new_zeros(())
        matrix, router = (zero if x is None else x for x in (parts.matrix_sum, parts.router_sum))
        details = [parts.details.get(name, zero) * count for name in self._DETAILS]
        self._sums[:5] += torch.stack(
            [x.detach().to(self._sums) for x in (parts.cross_entropy_sum, matrix, router, *details)]
        )
        known = (True, parts.matrix_sum is not None, parts.router_sum is not None, bool(parts.details))
        self._sums[5:] += self._sums.new_tensor([count * is_known for is_known in known])

    def means_and_reset(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the labels of all ranks, where known; every rank calls.

        Returns:
            `ce_loss`, `mce_loss`, `aux_loss` (of a mixture of experts), `tail_mass`, `quadrature_gap`; nothing where
            there was no label.
        """
        sums = accelerator.reduce(self._sums, reduction="sum").tolist()
        self.reset()
        cross_entropy, matrix, router, tail_mass, gap, labels, matrix_labels, router_labels, detail_labels = (
            sums
        )
        means = {}
        if labels:
            means["ce_loss"] = cross_entropy / labels
        if matrix_labels:
            means["mce_loss"] = matrix / matrix_labels
        if router_labels:
            means["aux_loss"] = router / router_labels
        if detail_labels:
            means["tail_mass"] = tail_mass / detail_labels
            means["quadrature_gap"] = gap / detail_labels
        return means


class HiddenMeter:
    """Effective rank of the covariance of hidden states that were seen since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set the moments to zero."""
        self._moments: Tensor | None = None

    def add(self, hidden_ND: Tensor) -> None:
        """Take in (N, d) hidden states."""
        # A column of ones makes one product hold second moments, sums and the count.
        extended = torch.nn.functional.pad(hidden_ND.float(), (0, 1), value=1.0)
        moments = (extended.T @ extended).double() if extended.device.type == "cpu" else extended.T @ extended
        self._moments = moments if self._moments is None else self._moments + moments

    def effective_rank(self, accelerator: Accelerator) -> float | None:
        """Exp of the entropy of the normalised spectrum over all ranks; None before two states were seen."""
        if self._moments is None:
            return None
        moments = accelerator.reduce(self._moments, reduction="sum")
        count = moments[-1, -1]
        if count < 2:
            return None
        mean = moments[-1, :-1] / count
        covariance = (moments[:-1, :-1] / count - torch.outer(mean, mean)).double().cpu()
        if not bool(covariance.trace() > 0):
            return None
        return float(effective_rank((covariance + covariance.T) / 2, validate=False))
