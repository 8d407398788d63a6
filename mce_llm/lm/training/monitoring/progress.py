"""One readable line in the terminal for each logged step, above the trainer's progress bar or instead of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mce_llm.running.visible_text import print_visible, visible

# Name in the logs → how it reads. What is not here is shown under its own name, unless it is hidden.
_SHOWN: dict[str, Callable[[float], str]] = {
    "loss": lambda x: f"loss {x:.4f}",
    "ce_loss": lambda x: f"ce {x:.4f}",
    "mce_loss": lambda x: f"mce {x:.4f}",
    "smoothing_loss": lambda x: f"smoothing {x:.4f}",
    "emo_loss": lambda x: f"emo {x:.4f}",
    "emo_distance": lambda x: f"distance {x:.4f}",
    "aux_loss": lambda x: f"aux {x:.3g}",
    "grad_norm": lambda x: f"grad {x:.3g}",
    "learning_rate": lambda x: f"lr {x:.3g}",
    "tokens_per_second": lambda x: f"{x:,.0f} tok/s",
    "mfu": lambda x: f"mfu {100 * x:.1f} %",
    "gpu_memory_gib": lambda x: f"{x:.1f} GiB",
    "hidden_effective_rank": lambda x: f"hidden rank {x:.1f}",
    "density_effective_rank": lambda x: f"density rank {x:.1f}",
    "tail_mass": lambda x: f"tail {x:.2g}",
}
# Logged values of training and evaluation that only trackers show.
_HIDDEN = {
    "epoch",
    "total_flos",
    "step_time",
    "samples_per_second",
    "steps_per_second",
    "trained_tokens_per_second",
    "gpu_memory_reserved_gib",
    "cpu_memory_gib",
    "hidden_top_share",
    "density_top_share",
    "quadrature_gap",
    "runtime",
    "model_preparation_time",
}


def describe(logs: dict[str, Any], state: TrainerState) -> str:
    """All that was logged at one step, in one line.

    Args:
        logs: Names and values; texts are left out.
        state: Tells the step.
    """
    if "train_runtime" in logs:
        minutes, seconds = divmod(round(logs["train_runtime"]), 60)
        loss = f" · mean loss {logs['train_loss']:.4f}" if "train_loss" in logs else ""
        return f"trained to step {state.global_step} in {minutes} min {seconds} s{loss}"
    prefix = _prefix(logs)
    values = {name.removeprefix(prefix): value for name, value in logs.items()}
    ordered = [*(name for name in _SHOWN if name in values), *(name for name in values if name not in _SHOWN)]
    parts = []
    for name in ordered:
        value = values[name]
        if name in _HIDDEN or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        parts.append(_SHOWN[name](value) if name in _SHOWN else f"{name} {value:.4g}")
    kind = prefix.replace("_", " ")
    return f"{kind}step {state.global_step}/{state.max_steps} · " + " · ".join(parts)


def _prefix(logs: dict[str, Any]) -> str:
    """`eval_` or `test_` for the logs of an evaluation, else nothing."""
    return next((p for p in ("eval_", "test_") if any(name.startswith(p) for name in logs)), "")


class _Lines:
    """Collects the logs of one step, which come in several calls, and writes them as one line at the next event."""

    _logs: dict[str, Any]

    def _write(self, line: str) -> None:
        raise NotImplementedError

    def _flush(self, state: TrainerState) -> None:
        logs, self._logs = self._logs, {}
        if logs and state.is_world_process_zero:
            self._write(describe(logs, state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Collect logs; those of an evaluation are a line of their own."""
        if _prefix(self._logs) != _prefix(logs or {}):
            self._flush(state)
        self._logs = {**self._logs, **(logs or {})}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the line of the finished step."""
        self._flush(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the line of the finished step."""
        self._flush(state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the line of the step before its checkpoint is saved."""
        self._flush(state)


class ProgressLinesCallback(_Lines, ProgressCallback):
    """The trainer's progress bar, with one line above it for each log instead of a printed dictionary."""

    def __init__(self) -> None:
        ProgressCallback.__init__(self)
        self._logs = {}

    def _write(self, line: str) -> None:
        if self.training_bar is not None:
            self.training_bar.write(visible(line))
        else:
            print_visible(line)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar, and print how to open the curves."""
        ProgressCallback.on_train_begin(self, args, state, control, **kwargs)
        if state.is_world_process_zero and (where := curves(args)) is not None:
            self._write(where)

    def on_prediction_step(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the line of the training step before the evaluation's output."""
        self._flush(state)
        ProgressCallback.on_prediction_step(self, args, state, control, **kwargs)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the evaluation's bar, then write its line."""
        ProgressCallback.on_evaluate(self, args, state, control, **kwargs)
        self._flush(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left and close the bar."""
        self._flush(state)
        ProgressCallback.on_train_end(self, args, state, control, **kwargs)


class PlainLinesCallback(_Lines, PrinterCallback):
    """The same lines without a bar, for `disable_tqdm`."""

    def __init__(self) -> None:
        self._logs = {}

    def _write(self, line: str) -> None:
        print_visible(line)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print how to open the curves."""
        if state.is_world_process_zero and (where := curves(args)) is not None:
            self._write(where)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the line of the training step before the evaluation's output."""
        self._flush(state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the evaluation's line."""
        self._flush(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left."""
        self._flush(state)


def curves(args: TrainingArguments) -> str | None:
    """How to look at the curves while the run goes on, or None without TensorBoard."""
    if "tensorboard" not in (args.report_to or []):
        return None
    # As the trainer's TensorBoardCallback chooses it.
    folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or Path(str(args.output_dir)) / "runs"
    return f"curves: tensorboard --logdir {folder}"
