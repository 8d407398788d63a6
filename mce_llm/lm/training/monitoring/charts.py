"""Which curves TensorBoard's "Custom Scalars" page shows together."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mce_llm.lm.training.monitoring.trackers import tensorboard_writer

# Page → chart → the curves in it.
LAYOUT: dict[str, dict[str, list[str]]] = {
    "Loss": {
        "total": ["train/loss", "eval/loss"],
        "cross-entropy": ["train/ce_loss", "eval/ce_loss"],
        "matrix cross-entropy": ["train/mce_loss", "eval/mce_loss"],
    },
    "Spectra": {
        "effective rank of hidden states": ["train/hidden_effective_rank", "eval/hidden_effective_rank"],
        "effective rank of predicted density matrices": ["train/density_effective_rank"],
        "share of the largest eigenvalue": ["train/hidden_top_share", "train/density_top_share"],
    },
    "Approximation": {
        "tail mass": ["train/tail_mass", "eval/tail_mass"],
        "quadrature gap": ["train/quadrature_gap", "eval/quadrature_gap"],
    },
    "Speed and memory": {
        "tokens a second": ["train/tokens_per_second", "train/trained_tokens_per_second"],
        "model FLOPs utilisation": ["train/mfu"],
        "GiB": ["train/gpu_memory_gib", "train/gpu_memory_reserved_gib", "train/cpu_memory_gib"],
    },
}


# Of the losses that have them.
_TERMS = {
    "label_smoothing": {"smoothing": ["train/smoothing_loss", "eval/smoothing_loss"]},
    "emo": {
        "emo term": ["train/emo_loss", "eval/emo_loss"],
        "earth mover's distance": ["train/emo_distance", "eval/emo_distance"],
    },
}


def layout_of(loss: str) -> dict[str, dict[str, list[str]]]:
    """The layout for a training with that loss.

    Args:
        loss: A `MatrixLossConfig.objective`.
    """
    return {**LAYOUT, "Loss": {**LAYOUT["Loss"], **_TERMS.get(loss, {})}}


class ChartsCallback(TrainerCallback):
    """Writes the layout when training begins, so that training and evaluation of one quantity share a chart.

    Args:
        trainer: A trainer with `MatrixLossMixin`, whose TensorBoard is meant; without one nothing is written.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the layout."""
        if (writer := tensorboard_writer(self._trainer)) is not None:
            writer.add_custom_scalars(
                {
                    page: {title: ["Multiline", curves] for title, curves in charts.items()}
                    for page, charts in layout_of(self._trainer.matrix_patch.config.objective).items()
                }
            )
