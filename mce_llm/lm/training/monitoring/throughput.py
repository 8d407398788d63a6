"""Tokens a second, model FLOPs utilisation and memory over each logging window."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mce_llm.lm.patch import MatrixLossPatch
from mce_llm.lm.training.monitoring.flops import ModelFlops, peak_flops
from mce_llm.lm.training.monitoring.spectra import patch_of
from mce_llm.lm.training.monitoring.trackers import log_scalars
from mce_llm.matrix.precision import exact_dtype
from mce_llm.running.devices import peak_memory, synchronize
from mce_llm.running.processes import say

_GIB = 2.0**30


class ThroughputCallback(TrainerCallback):
    """Logs, beside each logged loss, the throughput and memory of the steps since the last one, over all ranks.

    `tokens_per_second` (tokens that went through the model, padding left out), `trained_tokens_per_second` (labels that
    are not ignored), `samples_per_second` (rows), `step_time` (seconds an optimizer step) and, on a GPU whose peak is
    known, `mfu`: model FLOPs over elapsed time, divided by the peak dense bfloat16 FLOPs of all GPUs. Memory is that
    of the rank with the most: `gpu_memory_gib` and `gpu_memory_reserved_gib` are the allocator's peaks since the start,
    `cpu_memory_gib` is the resident set of the process at this moment.

    Time is wall-clock time between two logs, at which the trainer waits for the device anyway; steps are not
    synchronised. Time for evaluation, saving and sample generation is subtracted; waiting for data is not.

    Args:
        trainer: Whose training is measured.
        patch: The patch on its model; by default the trainer's own `matrix_patch`.
        clock: What tells the time, in seconds.

    Raises:
        ValueError: The trainer has no patch and none was given.
    """

    def __init__(
        self,
        trainer: Trainer,
        patch: MatrixLossPatch | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._trainer, self._patch, self._clock = trainer, patch, clock
        _ = patch_of(trainer, patch)
        self._flops: ModelFlops | None = None
        self._peak: float | None = None
        self._device = trainer.args.device
        self._begin = self._mark = self._excluded = 0.0
        self._steps = 0
        self._reset(self._clock())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look up peak and model FLOPs, and start the clock."""
        if self._device.type == "cuda":
            name = torch.cuda.get_device_name(self._device)
            self._peak, self._flops = peak_flops(name), ModelFlops.of(cast(nn.Module, self._trainer.model))
            if self._peak is None:
                say(f"no mfu is logged: the peak bfloat16 FLOP/s of {name} is not in the table")
            elif self._flops is None:
                say("no mfu is logged: the model's config does not tell layers, heads and width")
        self._reset(self._clock())

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a micro-batch."""
        self._count()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the last micro-batch of a step."""
        self._count()
        self._steps += 1
        if control.should_evaluate or control.should_save:
            self.mark()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the time before an evaluation or a checkpoint that may follow."""
        if control.should_evaluate or control.should_save:
            self.mark()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Subtract the time of the evaluation."""
        self.exclude_since_mark()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Subtract the time of saving."""
        self.exclude_since_mark()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the figures of the window after its loss."""
        if logs is None or "loss" not in logs or not self._steps:
            return
        now = self._clock()
        figures = self._window(now - self._begin - self._excluded)
        self._reset(now)
        log_scalars(self._trainer, control, figures)
        self._mark = self._clock()

    def mark(self) -> None:
        """Note when training pauses, after the device has finished its queue."""
        synchronize(self._device)
        self._mark = self._clock()

    def exclude_since_mark(self) -> None:
        """Subtract the time since the latest mark, step, log, evaluation or checkpoint from the window."""
        now = self._clock()
        self._excluded += now - self._mark
        self._mark = now

    def _reset(self, now: float) -> None:
        self._begin = self._mark = now
        self._excluded = 0.0
        self._steps = self._rows = self._trained = 0
        self._tokens: Tensor | float = 0.0
        self._positions: Tensor | float = 0.0

    def _count(self) -> None:
        last = patch_of(self._trainer, self._patch).last
        if last is None:
            return
        batch = last.batch
        self._rows += batch.rows
        self._trained += last.num_tokens
        self._tokens = self._tokens + batch.tokens
        self._positions = self._positions + batch.tokens * batch.length

    def _window(self, seconds: float) -> dict[str, float]:
        """The figures of the window, the same on every rank."""
        peaks = peak_memory(self._device)
        allocated, reserved = peaks or (0, 0)
        own = [
            float(self._rows),
            float(self._tokens),
            float(self._positions),
            float(self._trained),
            seconds,
            psutil.Process().memory_info().rss / _GIB,
            allocated / _GIB,
            reserved / _GIB,
        ]
        accelerator = self._trainer.accelerator
        numbers = torch.tensor([own], dtype=exact_dtype(self._device), device=self._device)
        gathered: Any = accelerator.gather(numbers)
        rows, tokens, positions, trained = gathered[:, :4].sum(dim=0).tolist()
        seconds, resident, *most = gathered[:, 4:].amax(dim=0).tolist()
        seconds = max(seconds, 1e-9)
        figures = {
            "tokens_per_second": tokens / seconds,
            "trained_tokens_per_second": trained / seconds,
            "samples_per_second": rows / seconds,
            "step_time": seconds / self._steps,
        }
        if self._peak is not None and self._flops is not None:
            done = self._flops.of_tokens(tokens, positions)
            figures["mfu"] = done / seconds / (self._peak * accelerator.num_processes)
        if peaks is not None:
            figures |= dict(zip(("gpu_memory_gib", "gpu_memory_reserved_gib"), most, strict=True))
        return {**figures, "cpu_memory_gib": resident}


@contextmanager
def paused(trainer: Trainer) -> Iterator[None]:
    """Subtract the time of the block from the throughput of a trainer, where that is measured."""
    clocks = [c for c in trainer.callback_handler.callbacks if isinstance(c, ThroughputCallback)]
    for clock in clocks:
        clock.mark()
    try:
        yield
    finally:
        for clock in clocks:
            clock.exclude_since_mark()
