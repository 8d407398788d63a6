"""Scalars, histograms and texts of the monitoring callbacks for the trackers that `report_to` names."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer, TrainerControl
from transformers.integrations import TensorBoardCallback, WandbCallback


def log_scalars(trainer: Trainer, control: TrainerControl, logs: dict[str, float]) -> None:
    """Send scalars through `Trainer.log`: to every tracker, the progress line and `log_history`; every rank calls.

    A log that is due anyway at the end of this step stays due; `Trainer.log` by itself would count as that one.
    """
    due = control.should_log
    trainer.log(logs)
    control.should_log = due


def add_histogram(trainer: Trainer, name: str, values: np.ndarray, step: int) -> None:
    """A histogram for TensorBoard and W&B, where they are in use; on the main process alone."""
    if (writer := tensorboard_writer(trainer)) is not None:
        writer.add_histogram(name, values, step)
    if (wandb := _wandb(trainer)) is not None:
        wandb.log({name: wandb.Histogram(values), "train/global_step": step})


def add_texts(
    trainer: Trainer, name: str, header: Sequence[str], rows: Sequence[Sequence[str]], step: int
) -> None:
    """A table of texts for TensorBoard (one text a row) and W&B (a table); on the main process alone."""
    if (writer := tensorboard_writer(trainer)) is not None:
        for index, row in enumerate(rows):
            parts = [f"**{title}**\n\n{_verbatim(cell)}" for title, cell in zip(header, row, strict=True)]
            writer.add_text(f"{name}/{index}", "\n\n".join(parts), step)
        writer.flush()
    if (wandb := _wandb(trainer)) is not None:
        table = wandb.Table(columns=list(header), data=[list(row) for row in rows])
        wandb.log({name: table, "train/global_step": step})


def tensorboard_writer(trainer: Trainer) -> Any:
    """The `SummaryWriter` of the run while it trains, or None."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            return callback.tb_writer
    return None


@contextmanager
def same_curves(trainer: Trainer, output: Path, step: int) -> Iterator[None]:
    """Have a training that goes on in this block continue the TensorBoard curves in its folder; nothing is written yet.

    What an interrupted run logged after the step that it goes on from is hidden: those steps are trained again.

    Args:
        trainer: Before its training begins.
        output: The folder of the run.
        step: The last step that was not lost.
    """
    changed: list[tuple[Any, Any]] = []
    for found in trainer.callback_handler.callbacks:
        if not isinstance(found, TensorBoardCallback) or found.tb_writer is not None:
            continue
        callback: Any = found
        if callback.logging_dir is None and (last := _last_events(output / "runs")) is not None:
            callback.logging_dir = str(last)
        changed.append((callback, callback._SummaryWriter))
        callback._SummaryWriter = functools.partial(callback._SummaryWriter, purge_step=step + 1)
    try:
        yield
    finally:
        for callback, writer in changed:
            callback._SummaryWriter = writer


def _last_events(runs: Path) -> Path | None:
    """The folder of event files that was written to last."""
    files = [(path.stat().st_mtime, path.parent) for path in runs.glob("*/events.out.tfevents.*")]
    return max(files)[1] if files else None


def _wandb(trainer: Trainer) -> Any:
    """The `wandb` module with a run begun by the trainer, or None."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, WandbCallback):
            return callback._wandb if callback._wandb.run is not None else None
    return None


def _verbatim(text: str) -> str:
    """Markdown that shows a text as it is: indented by four."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
