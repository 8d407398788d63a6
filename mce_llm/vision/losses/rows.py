"""What a loss does with its rows before anything else: check, gather, cast, normalise, centre.

No loss is computed here; what must hold for the values of the rows is checked by `checked_numbers`, at
the end and all at once, because it makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mce_llm.errors import LossInputError, NonFiniteLossError
from mce_llm.vision.losses.gathering import gather_rows, world_size

_FLOATING = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_SMALLEST_NORM = 1e-12  # below it F.normalize divides by this number instead, and the gradient explodes


def whole_batch(
    owner: str,
    given: Mapping[str, Tensor | None],
    *,
    constant: tuple[str, ...] = (),
    gather: bool = True,
    group: dist.ProcessGroup | None = None,
) -> list[Tensor]:
    """The rows of all processes, in float32, or float64 where one of the tensors is.

    Args:
        owner: The loss, for messages.
        given: Name → (m, d) rows of this process, bfloat16, float16, float32 or float64.
        constant: Names of tensors that no gradient may reach.
        gather: Bring the rows of all processes together.
        group: The processes that share the batch; None for all.

    Returns:
        The tensors in their order, (Σ m, d) each.

    Raises:
        LossInputError: A tensor is missing or no floating-point matrix, shapes or devices differ, or there are
            fewer than two rows in all.
    """
    shared = gather and world_size(group) > 1
    problems = _problems(given, constant, least=0 if shared else 2)
    problem = LossInputError(f"{owner}: " + "; ".join(problems)) if problems else None
    tensors: list[Tensor] = []
    if problem is None:
        found = {name: tensor for name, tensor in given.items() if tensor is not None}
        dtype = next(iter(found.values())).dtype
        for tensor in found.values():
            dtype = torch.promote_types(dtype, tensor.dtype)
        tensors = [
            (tensor.detach() if name in constant else tensor).to(dtype) for name, tensor in found.items()
        ]
    if shared:
        tensors = gather_rows(tensors, problem, group)
    elif problem is not None:
        raise problem
    if len(tensors[0]) < 2:
        raise LossInputError(f"{owner}: all processes together need at least 2 rows, got {len(tensors[0])}")
    return [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors]


def _problems(given: Mapping[str, Tensor | None], constant: tuple[str, ...], least: int) -> list[str]:
    problems = []
    shapes, devices = {}, {}
    for name, tensor in given.items():
        if tensor is None:
            hint = ": this loss compares the views with a teacher's (or a target's) rows"
            problems.append(f"{name} is missing{hint if name in constant else ''}")
        elif not isinstance(tensor, Tensor):
            problems.append(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        elif tensor.dtype not in _FLOATING:
            problems.append(f"{name} must be floating point, got {tensor.dtype}")
        elif tensor.ndim != 2 or tensor.shape[1] == 0:
            problems.append(
                f"{name} must be (m, d) rows, one for each image, got shape {tuple(tensor.shape)}"
            )
        else:
            shapes[name], devices[name] = tuple(tensor.shape), tensor.device
    if len(set(shapes.values())) > 1:
        listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        problems.append(f"all views must have one shape, got {listing}")
    elif shapes and next(iter(shapes.values()))[0] < least:
        rows = next(iter(shapes.values()))[0]
        problems.append(f"at least {least} rows are needed to centre them, got {rows}; use a larger batch")
    if len(set(devices.values())) > 1:
        listing = ", ".join(f"{name} on {device}" for name, device in devices.items())
        problems.append(f"all views must be on one device, got {listing}")
    return problems


def unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean norms (by 1e-12 where they are shorter).

    Args:
        rows: (m, d).

    Returns:
        (m, d).
    """
    return F.normalize(rows, dim=1, eps=_SMALLEST_NORM)


def centred(rows: Tensor) -> Tensor:
    """J Z: the mean row subtracted.

    Args:
        rows: (m, d).

    Returns:
        (m, d).
    """
    return rows - rows.mean(0)


def checked_numbers(
    owner: str,
    names: Sequence[str],
    rows: Sequence[Tensor],
    loss: Tensor,
    more: Sequence[Tensor] = (),
    *,
    zero_rows: bool = False,
) -> list[float]:
    """Read `more` from the device, after making sure that the loss and the rows can be trained on.

    One transfer in the good case; rows are searched only when something is wrong.

    Args:
        owner: The loss, for messages.
        names: What the tensors are called.
        rows: (m, d) each, as gathered.
        loss: The scalar.
        more: Scalars that the caller wants to look at.
        zero_rows: Whether a row may be zero, because rows are not normalised.

    Returns:
        The values of `more`.

    Raises:
        NonFiniteLossError: Rows or the loss are not finite.
        LossInputError: A row is zero.
    """
    with torch.no_grad():
        shortest = torch.stack([torch.linalg.vector_norm(tensor, dim=1).amin() for tensor in rows]).amin()
        scalars = [loss.detach(), shortest, *more]
        value, norm, *others = torch.stack([scalar.to(loss.dtype) for scalar in scalars]).tolist()
    if not abs(value) < float("inf") or norm != norm:
        problems = [
            f"{name} has {int(bad.sum())} of {bad.numel()} entries that are not finite, the first in row "
            f"{int(bad.nonzero()[0, 0])}, column {int(bad.nonzero()[0, 1])} of the whole batch"
            for name, tensor in zip(names, rows, strict=True)
            if bool((bad := ~torch.isfinite(tensor)).any())
        ]
        if problems:
            raise NonFiniteLossError(
                f"{owner}: "
                + "; ".join(problems)
                + ". Training has diverged or overflowed before the loss: lower the "
                "learning rate, or look for the layer that overflows"
            )
        raise NonFiniteLossError(
            f"{owner}: the loss is {value} although all rows are finite: terms of it are beyond {loss.dtype}, as very large "
            "weights make them, or a very small mu"
        )
    if norm <= _SMALLEST_NORM and not zero_rows:
        for name, tensor in zip(names, rows, strict=True):
            zero = torch.linalg.vector_norm(tensor, dim=1) <= _SMALLEST_NORM
            if bool(zero.any()):
                raise LossInputError(
                    f"{owner}: {int(zero.sum())} of {len(zero)} rows of {name} are zero, the first is row "
                    f"{int(zero.nonzero()[0])} of the whole batch; a zero row has no direction, and its gradient would be "
                    "1e12 times too large. Is the last batch norm's weight zero?"
                )
    return others
