"""Is a weight whole on this rank, or one part of a tensor that is sharded over a device mesh?

The losses take a softmax over the whole vocabulary and read whole rows of the head. Tensor parallelism leaves each rank
a part of them, as a `DTensor` or as a plain tensor of a module that is marked; a replicated one is whole everywhere, and
its local tensor is used. ZeRO and FSDP gather weights around the forward in which the loss runs, and are none of this
module's business.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from mce_llm.errors import MceLlmError


class ShardedWeightError(MceLlmError, TypeError):
    """The head, or what goes into it, is spread over ranks by tensor parallelism; the message says what to change."""


def check_whole(tensor: Tensor, name: str) -> None:
    """Refuse a tensor of which each rank has a part.

    Args:
        tensor: Of any kind; plain ones pass.
        name: What it is, for the message.

    Raises:
        ShardedWeightError: A DTensor with a placement other than Replicate over more than one rank.
    """
    if (found := _split_over(tensor)) is not None:
        raise _refusal(name, found)


def check_plan(head: nn.Module) -> None:
    """Refuse a head whose weight is a plain tensor with some of its rows, as some versions of transformers leave it.

    Args:
        head: The layer; transformers writes onto it what its plan says.

    Raises:
        ShardedWeightError: The plan splits it over more than one rank.
    """
    plan, mesh = getattr(head, "_hf_tp_plan", None), getattr(head, "_hf_device_mesh", None)
    alone = mesh is not None and mesh.size() == 1  # some versions do not tell the mesh
    if plan is not None and not alone and not str(plan).startswith("replicate"):
        raise _refusal("the head's weight", f"its plan is {plan!r}")


def whole(tensor: Tensor, name: str) -> Tensor:
    """The plain tensor: itself, or the local one of a DTensor that every rank has whole; differentiable.

    Args:
        tensor: Of any kind.
        name: What it is, for the message.

    Raises:
        ShardedWeightError: As `check_whole`.
    """
    check_whole(tensor, name)
    return cast(Any, tensor).to_local() if _is_distributed(tensor) else tensor


def _refusal(name: str, found: str) -> ShardedWeightError:
    return ShardedWeightError(
        f"{name} is split by tensor parallelism ({found}), and the loss needs the whole vocabulary on every rank; leave "
        "the head (lm_head, and input embeddings that it is tied to) and sequence parallelism before it out of the plan of "
        "parallelize_module, or replicate them (transformers: tp_plan={'lm_head': 'replicate'}, and del "
        "model.lm_head.forward after loading), or shard with FSDP2 or ZeRO instead"
    )


def _is_distributed(tensor: Tensor) -> bool:
    # Told by its attributes, because torch.distributed.tensor is missing where torch was built without it.
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def _split_over(tensor: Any) -> str | None:
    """The placements of a tensor that is split or not yet summed over ranks, in words; None where it is whole."""
    if not _is_distributed(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements
    if all(place.is_replicate() or mesh.size(axis) == 1 for axis, place in enumerate(placements)):
        return None
    placed = ", ".join(map(repr, placements))
    return f"a DTensor placed as {placed} over a mesh of {' × '.join(map(str, mesh.shape))} ranks"
