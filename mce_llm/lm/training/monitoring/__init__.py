"""Monitoring of a training run: losses, spectra, throughput, memory and sample generations.

Each part is a callback of `transformers.Trainer`, which `trainer.remove_callback(CLASS)` removes.
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mce_llm.lm.arguments import MatrixSettings
from mce_llm.lm.patch import MatrixLossPatch
from mce_llm.lm.training.monitoring.charts import ChartsCallback
from mce_llm.lm.training.monitoring.progress import PlainLinesCallback, ProgressLinesCallback
from mce_llm.lm.training.monitoring.samples import SamplesCallback
from mce_llm.lm.training.monitoring.spectra import SpectraCallback
from mce_llm.lm.training.monitoring.throughput import ThroughputCallback, paused

__all__ = [
    "ChartsCallback",
    "PlainLinesCallback",
    "ProgressLinesCallback",
    "SamplesCallback",
    "SpectraCallback",
    "ThroughputCallback",
    "add_monitoring",
    "paused",
]


def add_monitoring(trainer: Trainer, patch: MatrixLossPatch | None = None) -> None:
    """Add the callbacks that the trainer's arguments ask for, and readable lines in place of printed dictionaries.

    `MatrixTrainer` does this by itself. With stock arguments the defaults of `MatrixSettings` hold.

    Args:
        trainer: Any Hugging Face trainer.
        patch: What `patch_model` returned, for a trainer without a `matrix_patch` of its own.

    Raises:
        ValueError: Settings that do not fit this trainer.
    """

    def setting(name: str) -> Any:
        return getattr(trainer.args, name, getattr(MatrixSettings, name))

    for callback in list(trainer.callback_handler.callbacks):
        for stock, ours in ((ProgressCallback, ProgressLinesCallback), (PrinterCallback, PlainLinesCallback)):
            if type(callback) is stock:
                trainer.remove_callback(callback)
                trainer.add_callback(ours())
    trainer.add_callback(ThroughputCallback(trainer, patch))
    if every := setting("monitor_steps"):
        positions = setting("monitor_positions")
        trainer.add_callback(SpectraCallback(trainer, patch, monitor_steps=every, positions=positions))
    if every := setting("sample_steps"):
        trainer.add_callback(
            SamplesCallback(
                trainer,
                sample_steps=every,
                prompts=setting("sample_prompts"),
                max_new_tokens=setting("sample_max_new_tokens"),
            )
        )
    trainer.add_callback(ChartsCallback(trainer))
