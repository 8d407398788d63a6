"""Rows of all processes in every process, so that each computes the loss of the whole batch.

Numbers of rows may differ between processes. A small message goes round first, so that a process whose rows are
unusable makes all of them stop with an error instead of leaving the others waiting.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mce_llm.matrix.first_order import first_derivative
from mce_llm.vision.losses.errors import RankMismatchError

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def world_size(group: dist.ProcessGroup | None) -> int:
    """How many processes share the batch; 1 where no process group was set up."""
    if not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size(group)


class _GatherRows(torch.autograd.Function):
    """(m_r, d) tensors of this rank to (Σ m_r, d) tensors of all, in one collective."""

    @staticmethod
    def forward(
        ctx: Any, counts: list[int], rank: int, group: dist.ProcessGroup | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.world, ctx.first, ctx.count = len(counts), sum(counts[:rank]), counts[rank]
        most, width = max(counts), tensors[0].shape[1]
        packed = tensors[0].new_zeros(most, len(tensors) * width)
        packed[: ctx.count] = torch.cat(tensors, dim=1)
        everything = _all_gather(packed, group)
        per_rank = everything.view(len(counts), most, len(tensors), width)
        gathered = tuple(
            torch.cat([per_rank[r, :count, index] for r, count in enumerate(counts)])
            for index in range(len(tensors))
        )
        constant = [g for g, needed in zip(gathered, ctx.needs_input_grad[3:], strict=True) if not needed]
        ctx.mark_non_differentiable(*constant)
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        own = slice(ctx.first, ctx.first + ctx.count)
        needed = ctx.needs_input_grad[3:]
        return (
            None,
            None,
            None,
            # A second derivative would need the gradients of all ranks, and get those of this one.
            *(
                first_derivative(grad[own] * ctx.world, grad) if need else None
                for grad, need in zip(grads, needed, strict=True)
            ),
        )


def gather_rows(
    tensors: list[Tensor], problem: Exception | None = None, group: dist.ProcessGroup | None = None
) -> list[Tensor]:
    """The rows of all ranks, in the order of the ranks, in one collective for all tensors.

    The gradient that each rank gets is world_size times its share of the gradient of the whole batch's loss, so that
    the mean over ranks, which `DistributedDataParallel` takes, is that gradient exactly, whatever the numbers of
    rows. No communication is needed for it, because every rank computes the same loss; it holds as long as every rank
    scales its loss alike.

    Every rank of the group must call it, also one that found its tensors unusable: it passes the problem instead, all
    ranks learn of it, and all raise.

    Args:
        tensors: (m_r, d) each, of one dtype; m_r may differ between ranks, and be 0.
        problem: What makes them unusable.
        group: The processes that share the batch; None for all.

    Returns:
        (Σ m_r, d) each; the tensors themselves for one process.

    Raises:
        RankMismatchError: Another rank found its rows unusable, or d or the dtype differ between ranks.
    """
    if world_size(group) == 1:
        if problem is not None:
            raise problem
        return tensors
    rank = dist.get_rank(group)
    if problem is None:
        rows, width = tensors[0].shape
        own = [1, rows, width, _DTYPES.index(tensors[0].dtype), len(tensors)]
    else:
        own = [0] * 5
    headers = _exchange(own, group)
    if problem is not None:
        raise problem
    refused = [str(r) for r, header in enumerate(headers) if not header[0]]
    if refused:
        raise RankMismatchError(
            f"the rows of rank {', '.join(refused)} are unusable; the message there says why. This is rank {rank}"
        )
    for what, column in (("dimension d", 2), ("dtype", 3), ("number of tensors", 4)):
        found = [header[column] for header in headers]
        if len(set(found)) > 1:
            shown = [str(_DTYPES[value]) if column == 3 else str(value) for value in found]
            raise RankMismatchError(
                f"all ranks must bring rows of one {what}, but ranks 0 … {len(found) - 1} bring {', '.join(shown)}; "
                "every process must run the same model with the same precision"
            )
    counts = [header[1] for header in headers]
    if not sum(counts):
        return tensors
    return list(_GatherRows.apply(counts, rank, group, *tensors))


def _exchange(values: list[int], group: dist.ProcessGroup | None) -> list[list[int]]:
    """The values of every rank; on the CPU unless the backend only knows GPUs."""
    device = torch.device("cuda") if dist.get_backend(group) == "nccl" else torch.device("cpu")
    return _all_gather(torch.tensor(values, device=device), group).tolist()


def _all_gather(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(world_size, …) from a tensor of one shape on all ranks."""
    everything = tensor.new_empty(dist.get_world_size(group), *tensor.shape)
    dist.all_gather(list(everything.unbind()), tensor, group=group)
    return everything
