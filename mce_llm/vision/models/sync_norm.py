"""Batch norms whose statistics are those of the batch of all processes.

On GPUs that is torch's own `SyncBatchNorm`. Torch has none for the CPU, where the same training must be possible (and
its parity testable) over gloo, so there is a plain one here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mce_llm.vision.models.backbones import BackboneError

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class ProcessBatchNorm(nn.modules.batchnorm._BatchNorm):
    """y = γ (x − μ)/√(σ² + ε) + β with μ and σ² over the rows of all processes, which may have unequal numbers of rows.

    In evaluation mode, and without a process group, it is an ordinary batch norm. The sum of all processes' losses is
    what the gradient is of, as with `SyncBatchNorm`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.ndim}")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, …) → (B, C, …), in the input's dtype; the statistics are formed in float32 or better."""
        self._check_input_dim(input)
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        exact = input if input.dtype == torch.float64 else input.float()
        over = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = exact.numel() // exact.shape[1]
        sums = _sum_over_processes(torch.cat([exact.sum(over), exact.new_tensor([float(count)])]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = exact - mean.view(shape)
        # Squares of what is centred already: E[x²] − μ² loses the digits of a small variance beside a large mean.
        variance = _sum_over_processes(centred.square().sum(over)) / total
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                unbiased = variance * (total / (total - 1).clamp_min(1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm by one over all processes; parameters, buffers and their names stay.

    Args:
        module: Any module, not yet wrapped for data parallelism.
        device: Where it will run.

    Returns:
        The module (another one only if it is itself a batch norm).

    Raises:
        BackboneError: It has batch norms of a library's own kind, which would lose what they do besides.
    """
    others = {
        type(m).__name__
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        and type(m) not in (*_KINDS, nn.SyncBatchNorm, ProcessBatchNorm)
    }
    if others:
        raise BackboneError(
            f"the batch norms of kind {', '.join(sorted(others))} cannot be synchronised over processes; use an encoder "
            "with plain ones (the ResNets), or one process"
        )
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return _converted(module)


def _converted(module: nn.Module) -> nn.Module:
    if isinstance(module, _KINDS):
        return _process_norm(module)
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    return module


def _process_norm(norm: nn.modules.batchnorm._BatchNorm) -> ProcessBatchNorm:
    made = ProcessBatchNorm(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    made._parameters.update(norm._parameters)
    made._buffers.update(norm._buffers)
    made.training = norm.training
    return made


class _SumOverProcesses(torch.autograd.Function):
    """Σ over processes, forward and backward: every process's loss depends on every process's term."""

    @staticmethod
    def forward(ctx: Any, term: Tensor) -> Tensor:
        total = term.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _sum_over_processes(gradients[0])  # so that a second derivative is the sum, too


def _sum_over_processes(term: Tensor) -> Tensor:
    return _SumOverProcesses.apply(term)
