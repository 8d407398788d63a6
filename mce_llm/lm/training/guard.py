"""Stop, or leave out, an optimizer step whose loss or gradient is not a number, or that has no label to learn from.

On all ranks, and before the optimizer: even a gradient of zeros would move weights by their decay and old moments.

Whether the gradients of a step are finite is read off their norm, which is computed for clipping anyway. The norm does
not tell whose they were, and clipping by a norm that is not finite leaves none of them as it was; so each rank also keeps
two numbers a micro-batch, its loss and the size of one gradient at the end of the backward pass, through which whatever
is not finite above has come. Nothing of this waits for the device. Before an optimizer step all ranks share one small
vector, so that they do the same thing, and read it: the one wait of a step. Only where something is wrong do they also
share who saw it, in which micro-batch, and on which training rows. The same vector carries a request to stop
(preemption), since that too has to reach all ranks at the same step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce

from mce_llm.errors import LossInputError, NonFiniteLossError
from mce_llm.running.processes import gather

_ROWS_SHOWN = 16


@dataclass
class _MicroBatch:
    """Loss of one forward and backward pass, and how large the watched gradient is, on the device."""

    rows: Tensor | None
    loss: Tensor
    labels: int | None
    gradients: list[Tensor] = field(default_factory=list)


class StepGuard:
    """Watches one training run.

    Args:
        action: `stop` raises an error on all ranks; `skip` leaves the step out on all ranks.
        patience: With `skip`, how many steps in a row may be left out before the run is stopped after all.
        device: Where losses and gradients are.
        watch_gradients: Off where a loss scaler deals with gradients that overflow (float16).
        stop_requested: Asked on every rank before each optimizer step; any rank's yes counts for all.

    Attributes:
        stop: Whether all ranks have agreed to stop after this step.
        skipped_steps: How many steps were left out so far.
        step_is_bad: Whether the latest step was left out.
        step_is_empty: Whether it was left out because no rank had a trained label.
        last_report: What was found in the latest step that was left out.
    """

    def __init__(
        self,
        action: str,
        patience: int,
        device: torch.device,
        *,
        watch_gradients: bool = True,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.action, self.patience = action, patience
        self.watch_gradients = watch_gradients
        self.stop_requested = stop_requested
        self.stop = False
        self.step_is_bad = self.step_is_empty = False
        self.skipped_steps = 0
        self.last_report = ""
        self._in_a_row = 0
        self._device = device
        self._handles: list[Any] = []
        self._trained: list[nn.Parameter] = []
        self._begin_step()

    def forget_step(self) -> None:
        """Drop what a run that ended in the middle of a step has left."""
        self._begin_step()

    def _begin_step(self) -> None:
        self._micro_batches: list[_MicroBatch] = []

    @property
    def step_begins(self) -> bool:
        """Whether no micro-batch of the coming step was seen yet."""
        return not self._micro_batches

    def watch(self, model: nn.Module) -> None:
        """Register a hook that sees one gradient of this rank's backward passes, before gradients are reduced.

        FSDP2 only exposes reduced gradients; there it is the gradient at the output of the input embeddings.

        Args:
            model: The model, wrapped by the engine.
        """
        self.unwatch()
        if not self.watch_gradients:
            return
        self._trained = [p for p in model.parameters() if p.requires_grad]
        if any(hasattr(p, "to_local") for p in self._trained):
            owner: Any = model

            def watch_output(_: nn.Module, __: Any, output: Tensor) -> None:
                if output.requires_grad:
                    output.register_hook(self._note_gradient)

            self._handles.append(owner.get_input_embeddings().register_forward_hook(watch_output))
        elif self._trained:
            self._handles.append(last_reached(model).register_hook(self._note_gradient))

    def unwatch(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._trained = [], []

    def _note_gradient(self, gradient: Tensor) -> None:
        if self._micro_batches:
            self._micro_batches[-1].gradients.append(magnitude(gradient))

    def note(self, loss: Tensor, rows: Tensor | None, labels: int | None = None) -> None:
        """Record the loss of one micro-batch, before its backward pass.

        Args:
            loss: A scalar.
            rows: Ids of its training rows, where known.
            labels: How many labels it is trained on; None where that is not known.
        """
        self._micro_batches.append(_MicroBatch(rows, loss.detach().float(), labels))

    def agree(self, step: int, norms: Iterable[Tensor] | None = None) -> bool:
        """Decide with all ranks, before the optimizer, whether it may step; every rank calls.

        Args:
            step: The number of this optimizer step, the first being 1.
            norms: Of the gradients after they were reduced: of all, or of each part that this rank has of them. Not read
                where gradients are not watched; by default those of the parameters' gradients are computed.

        Returns:
            True to take the step, False to leave it out (action `skip`).

        Raises:
            NonFiniteLossError: Action `stop`, or as many steps were left out in a row as patience allows.
            LossInputError: The same, where no rank had a trained label.
        """
        numbers = [number for batch in self._micro_batches for number in (batch.loss, *batch.gradients)]
        if not self.watch_gradients:
            norms = []
        elif norms is None:
            norms = magnitudes(p.grad for p in self._trained if p.grad is not None)
        norms = [local_part(norm.detach()) for norm in norms]
        labelled = not self._micro_batches or any(batch.labels != 0 for batch in self._micro_batches)
        anything_bad, stop_everywhere, any_label = self._shared(
            [*numbers, *norms], self.stop_requested(), labelled
        )
        self.stop = self.stop or stop_everywhere
        self.step_is_empty = not any_label
        self.step_is_bad = anything_bad or self.step_is_empty
        if not self.step_is_bad:
            self._in_a_row = 0
            self._begin_step()
            return True

        found = self._unlabelled() if self.step_is_empty else self._report(norms)
        self._begin_step()
        if self.action == "skip" and self._in_a_row < self.patience:
            self._in_a_row += 1
            self.skipped_steps += 1
            self.last_report = f"step {step} left out on all ranks: {found}"
            return False
        reason = f", skipped steps in a row: {self.patience}" if self.action == "skip" else ""
        happened = (
            f"step {step}{reason}: {found}. Training stopped on all ranks before the optimizer; the weights are those "
            f"of step {step - 1}."
        )
        if self.step_is_empty:
            raise LossInputError(
                f"{happened} Drop these rows, or raise max_length where it cut their labels off (the first token of a row "
                "is never predicted); on_nonfinite: skip leaves such steps out"
            )
        raise NonFiniteLossError(
            f"{happened} Look at these rows; go back to a checkpoint, with a lower learning_rate or max_grad_norm; "
            "on_nonfinite: skip leaves such steps out"
        )

    def _shared(self, numbers: list[Tensor], stop: bool, labelled: bool) -> tuple[bool, bool, bool]:
        """Whether on any rank a number is not finite, a stop is asked for, and there is a label; waits for the device."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for number in numbers:
            by_device.setdefault(number.device, []).append(number)
        bad = torch.zeros((), dtype=torch.bool, device=self._device)
        for together in by_device.values():
            bad = bad | ~torch.isfinite(torch.stack(together)).all().to(self._device)
        if PartialState().num_processes == 1:
            return bool(bad), stop, labelled
        given = [torch.full((), float(flag), device=self._device) for flag in (stop, labelled)]
        flags = torch.stack([bad.float(), *given])
        all_reduce(flags, op=ReduceOp.MAX)
        anything_bad, stop_everywhere, any_label = (bool(flag) for flag in flags.tolist())
        return anything_bad, stop_everywhere, any_label

    def _unlabelled(self) -> str:
        """The training rows of all ranks in a step without a label; every rank calls."""
        own = [batch.rows.tolist() for batch in self._micro_batches if batch.rows is not None]
        rows = [row for rows in gather([row for rows in own for row in rows]) for row in rows]
        return f"no trained label in {_rows_text(torch.tensor(rows) if rows else None)}"

    def _report(self, norms: list[Tensor]) -> str:
        """What was not finite on which rank, in words; every rank calls.

        Args:
            norms: This rank's.
        """
        norm = next((x for x in map(float, norms) if not math.isfinite(x)), None)
        everyone = gather((self._own_report(), norm))
        if found := "; ".join(line for lines, _ in everyone for line in lines):
            return found
        of_all = next((x for _, x in everyone if x is not None), math.nan)
        return (
            f"the norm of the gradients is {of_all} (the loss of every micro-batch is finite, and so is the gradient of each "
            "that was watched: they overflowed where they were added up, or at one weight alone)"
        )

    def _own_report(self) -> list[str]:
        """The micro-batches of this rank whose loss or gradient is not finite, in words."""
        rank, lines = PartialState().process_index, []
        count = len(self._micro_batches)
        for index, batch in enumerate(self._micro_batches):
            loss = float(batch.loss)
            if not math.isfinite(loss):
                what = f"the loss is {loss}"
            elif not all(math.isfinite(float(gradient)) for gradient in batch.gradients):
                what = f"the gradient is not finite (its loss is {loss:.4g})"
            else:
                continue
            where = f"rank {rank}, micro-batch {index + 1} of {count}, {_rows_text(batch.rows)}"
            lines.append(f"{what} on {where}")
        return lines


def _rows_text(rows: Tensor | None) -> str:
    if rows is None:
        return "training rows unknown (the data set cannot be indexed)"
    ids = rows.flatten().tolist()
    more = f" and {len(ids) - _ROWS_SHOWN} more" if len(ids) > _ROWS_SHOWN else ""
    return f"training rows {', '.join(map(str, ids[:_ROWS_SHOWN]))}{more}"


def last_reached(model: nn.Module) -> nn.Parameter:
    """The trained parameter that the backward pass reaches last, as far as the order of the layers tells.

    That is the first one behind the input embeddings: their own gradient has a row for every token of the vocabulary, and
    modules before them (of images, say) may have no part in a batch.

    Args:
        model: A causal language model, wrapped or not, or any other module; something of it is trained.
    """
    parameters = list(model.parameters())
    tables = {id(p) for layer in _ends(model) if layer is not None for p in layer.parameters()}
    start = next((place for place, p in enumerate(parameters) if id(p) in tables), 0)
    ordered = [p for p in (*parameters[start:], *parameters[:start]) if p.requires_grad]
    return next((p for p in ordered if id(p) not in tables), ordered[0])


def _ends(model: nn.Module) -> tuple[nn.Module | None, ...]:
    """The input embeddings and the head of a model, where it has any."""
    owner: Any = model
    while not hasattr(owner, "get_input_embeddings") and isinstance(
        getattr(owner, "module", None), nn.Module
    ):
        owner = owner.module
    if not hasattr(owner, "get_input_embeddings"):
        return ()
    return owner.get_input_embeddings(), owner.get_output_embeddings()


def local_part(tensor: Any) -> Tensor:
    """This rank's part of a tensor, as it is at hand without asking another rank."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def magnitude(tensor: Tensor) -> Tensor:
    """Σ|x| of this rank's part of a tensor, a scalar in at least float32; finite where every element is."""
    part = local_part(tensor.detach())
    return torch.linalg.vector_norm(part, 1, dtype=torch.promote_types(part.dtype, torch.float32))


def magnitudes(tensors: Iterable[Tensor]) -> list[Tensor]:
    """`magnitude` of every tensor, in a few launches for all of them."""
    parts = [local_part(tensor.detach()) for tensor in tensors]
    if not parts:
        return []
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts), torch.float32)
    return list(torch._foreach_norm(parts, 1, dtype=dtype))


def forget_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Set all gradients to None, so that an optimizer step changes neither weights nor moments."""
    for parameter in parameters:
        parameter.grad = None
