"""Running sums behind the logged means: parts of the loss, and the spectrum of the hidden states.

Sums stay on the device, and what the host knows (numbers of labels) stays on the host; both are reduced over the ranks
when a mean is asked for. A training step pays one addition, copies nothing to the device and waits for nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.patched_call import LossParts
from mce_llm.matrix.effective_rank import effective_rank
from mce_llm.matrix.precision import exact_dtype, full_precision, in_float64


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


def total_loss(means: dict[str, float], config: MatrixLossConfig) -> float:
    """The loss of means over all labels; NaN where there was no label.

    But for the kinds `marginal` and `expected` it is a function of the data alone: neither the size of batches nor the
    number of ranks is in it. What routers add to the loss of training depends on which rows are routed together, and is
    left out.

    Args:
        means: Of `LossMeter.means_and_reset`.
        config: The settings of the loss.
    """
    plain, parts = config.shares
    terms = sum(share * means.get(name, math.nan) for name, share in parts.items())
    return plain * means.get("ce_loss", math.nan) + terms


class LossMeter:
    """Means over labels of the parts of the loss since the last reset."""

    # Under these names: means, each over the labels of the forwards that had it.
    _NAMES = (
        *("ce_loss", "mce_loss", "smoothing_loss", "emo_loss", "emo_distance", "aux_loss"),
        *("tail_mass", "quadrature_gap"),
    )

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._zero = torch.zeros((), device=device)
        self.reset()

    def reset(self) -> None:
        """Set all sums to zero."""
        size = len(self._NAMES)
        self._sums = torch.zeros(size, dtype=exact_dtype(self._device), device=self._device)
        self._labels = [0.0] * size
        self.mark()

    def mark(self) -> None:
        """Keep the present sums for `back`."""
        self._marked = self._sums, self._labels

    def back(self) -> None:
        """Return to the sums of the latest mark or reset."""
        self._sums, self._labels = self._marked

    def add(self, parts: LossParts) -> None:
        """Take in one forward."""
        count = float(parts.num_tokens)
        given = {
            "ce_loss": parts.cross_entropy_sum,
            "mce_loss": parts.matrix_sum,
            "aux_loss": parts.router_sum,
            **parts.term_sums,
            **{name: mean * count for name, mean in parts.details.items()},
        }
        found = {name: x.detach().to(self._device) for name, x in given.items() if x is not None}
        # Neither sums nor labels are changed in place, since the mark may be the same ones.
        self._sums = self._sums + torch.stack([found.get(name, self._zero) for name in self._NAMES])
        self._labels = [
            total + count * (name in found) for name, total in zip(self._NAMES, self._labels, strict=True)
        ]

    def means_and_reset(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the labels of all ranks, where known; every rank calls.

        Returns:
            `ce_loss`, `mce_loss`, what another loss has beside CE (`smoothing_loss`; `emo_loss`, `emo_distance`),
            `aux_loss` (of a mixture of experts), `tail_mass`, `quadrature_gap`; nothing where there was no label.
        """
        own = torch.stack([self._sums, self._sums.new_tensor(self._labels)])
        sums, labels = accelerator.reduce(own, reduction="sum").tolist()
        self.reset()
        rows = zip(self._NAMES, sums, labels, strict=True)
        return {name: total / count for name, total, count in rows if count}


class HiddenMeter:
    """Effective rank of the covariance of hidden states that were seen since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set the moments to zero."""
        # About a point near the states' mean, so that what is common to them does not round away how they differ.
        self._point: Tensor | None = None
        self._moments: Tensor | None = None

    def add(self, hidden_ND: Tensor) -> None:
        """Take in (N, d) hidden states."""
        if not len(hidden_ND):
            return
        states = hidden_ND.float()
        if self._point is None:
            self._point = states.mean(dim=0)
        # A column of ones makes one product hold second moments, sums and the count.
        extended = torch.nn.functional.pad(states - self._point, (0, 1), value=1.0)
        with full_precision(extended):
            moments = extended.T @ extended
        if self._moments is None:
            self._moments = moments.to(exact_dtype(moments.device))
        else:
            self._moments += moments

    def effective_rank(self, accelerator: Accelerator) -> float | None:
        """Exp of the entropy of the normalised spectrum over all ranks; None before two states were seen.

        The spectrum is computed where the states are, or on the CPU where their device has no float64. Every rank calls;
        one that has seen no state takes part with none.
        """
        own = 0 if self._point is None else len(self._point)
        width = int(accelerator.gather(torch.tensor([own], device=accelerator.device)).max())
        if not width:
            return None
        if self._moments is None or self._point is None:
            self._point = torch.zeros(width, device=accelerator.device)
            self._moments = self._point.new_zeros(width + 1, width + 1)
        moments, point = in_float64(self._moments), in_float64(self._point)
        # About zero, which is the same point on every rank: with y = x − p, Σxxᵀ = Σyyᵀ + p Σyᵀ + Σy pᵀ + n ppᵀ.
        point = torch.nn.functional.pad(point, (0, 1))
        sums = moments[:, -1]
        moments = moments.addr(point, sums).addr_(sums + moments[-1, -1] * point, point)
        moments = accelerator.reduce(moments, reduction="sum")
        count = moments[-1, -1]
        if count < 2:
            return None
        mean = moments[-1, :-1] / count
        covariance = (moments[:-1, :-1] / count).addr_(mean, mean, alpha=-1)
        if not bool(covariance.trace() > 0):
            return None
        return float(effective_rank(covariance, validate=False))
