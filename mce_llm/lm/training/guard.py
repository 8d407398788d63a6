"""Stop, or leave out, an optimizer step whose loss or gradient is not a number, or that has no label to learn from.

On all ranks, and before the optimizer: even a gradient of zeros would move weights by their decay and old moments.

Every rank watches its own losses and gradients without waiting for the device. Before an optimizer step all ranks
share one small vector, so that they do the same thing; only where something is wrong do they also share who saw it, in
which micro-batch, and on which training rows. The same vector carries a request to stop (preemption), since that too
has to reach all ranks at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
    """Loss and gradients of one forward and backward pass, on the device."""

    rows: Tensor | None
    loss: Tensor
    labels: int | None
    gradients: Tensor  # running sum over the step so far; not finite from the first bad gradient on


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
        self._sharded: list[Any] = []
        self._begin_step()

    def _begin_step(self) -> None:
        self._micro_batches: list[_MicroBatch] = []
        self._gradients = torch.zeros((), device=self._device)

    @property
    def step_begins(self) -> bool:
        """Whether no micro-batch of the coming step was seen yet."""
        return not self._micro_batches

    def watch(self, model: nn.Module) -> None:
        """Register hooks that check every gradient of this rank's backward pass, before gradients are reduced.

        FSDP2 only exposes reduced gradients; there, the gradient at the output of the input embeddings is checked on
        this rank, and the reduced gradients before the step.

        Args:
            model: The model, wrapped by the engine.
        """
        self.unwatch()
        if not self.watch_gradients:
            return
        trained = [p for p in model.parameters() if p.requires_grad]
        self._sharded = [p for p in trained if hasattr(p, "to_local")]
        if self._sharded:
            owner: Any = model

            def watch_output(_: nn.Module, __: Any, output: Tensor) -> None:
                if output.requires_grad:
                    output.register_hook(self._note_gradient)

            self._handles.append(owner.get_input_embeddings().register_forward_hook(watch_output))
        plain = [p for p in trained if not hasattr(p, "to_local")]
        self._handles += [p.register_hook(self._note_gradient) for p in plain]

    def unwatch(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._sharded = [], []

    def _note_gradient(self, gradient: Tensor) -> None:
        # One reduction: a sum of numbers with one that is not finite among them is not finite. In float32, since
        # sums of float16 overflow.
        self._gradients += gradient.detach().sum(dtype=torch.float32)

    def note(self, loss: Tensor, rows: Tensor | None, labels: int | None = None) -> None:
        """Record the loss of one micro-batch, before its backward pass.

        Args:
            loss: A scalar.
            rows: Ids of its training rows, where known.
            labels: How many labels it is trained on; None where that is not known.
        """
        # The running sum is updated in place, so the previous micro-batch gets a copy of its value now.
        if self._micro_batches:
            self._micro_batches[-1].gradients = self._gradients.clone()
        self._micro_batches.append(_MicroBatch(rows, loss.detach().float(), labels, self._gradients))

    def agree(self, step: int) -> bool:
        """Decide with all ranks, before the optimizer, whether it may step; every rank calls.

        Args:
            step: The number of this optimizer step, the first being 1.

        Returns:
            True to take the step, False to leave it out (action `skip`).

        Raises:
            NonFiniteLossError: Action `stop`, or as many steps were left out in a row as patience allows.
            LossInputError: The same, where no rank had a trained label.
        """
        sums = self._gradients + sum(
            (p.grad.to_local().sum(dtype=torch.float32) for p in self._sharded if p.grad is not None),
            start=torch.zeros((), device=self._device),
        )
        losses = torch.stack([batch.loss for batch in self._micro_batches] or [torch.zeros_like(sums)])
        bad = ~torch.isfinite(losses).all() | ~torch.isfinite(sums)
        stop = torch.full_like(sums, float(self.stop_requested()))
        labelled = not self._micro_batches or any(batch.labels != 0 for batch in self._micro_batches)
        flags = torch.stack([bad.to(sums), stop, torch.full_like(sums, float(labelled))])
        if PartialState().num_processes > 1:
            all_reduce(flags, op=ReduceOp.MAX)
        anything_bad, stop_everywhere, any_label = (bool(flag) for flag in flags.tolist())
        self.stop = self.stop or stop_everywhere
        self.step_is_empty = not any_label
        self.step_is_bad = anything_bad or self.step_is_empty
        if not self.step_is_bad:
            self._in_a_row = 0
            self._begin_step()
            return True

        found = self._unlabelled() if self.step_is_empty else self._report()
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

    def _unlabelled(self) -> str:
        """The training rows of all ranks in a step without a label; every rank calls."""
        own = [batch.rows.tolist() for batch in self._micro_batches if batch.rows is not None]
        rows = [row for rows in gather([row for rows in own for row in rows]) for row in rows]
        return f"no trained label in {_rows_text(torch.tensor(rows) if rows else None)}"

    def _report(self) -> str:
        """What was not finite on which rank, in words; every rank calls."""
        found = "; ".join(line for lines in gather(self._own_report()) for line in lines)
        return found or "the gradients summed over ranks are not finite (no rank's own part was seen to be)"

    def _own_report(self) -> list[str]:
        """The micro-batches of this rank whose loss or gradient is not finite, in words."""
        rank, lines = PartialState().process_index, []
        count = len(self._micro_batches)
        if count:
            self._micro_batches[-1].gradients = self._gradients
        for index, batch in enumerate(self._micro_batches):
            loss, gradients = float(batch.loss), float(batch.gradients)
            before = float(self._micro_batches[index - 1].gradients) if index else 0.0
            if not math.isfinite(loss):
                what = f"the loss is {loss}"
            elif not math.isfinite(gradients) and math.isfinite(before):
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


def forget_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Set all gradients to None, so that an optimizer step changes neither weights nor moments."""
    for parameter in parameters:
        parameter.grad = None
