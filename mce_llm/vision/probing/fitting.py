"""The training loop of linear classifiers: steps, journal, checkpoints, and going on where it was stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mce_llm.errors import MceLlmError
from mce_llm.running.preemption import training
from mce_llm.vision.probing.batches import FeatureBatches
from mce_llm.vision.probing.heads import ParallelHeads, heads_optimizer
from mce_llm.vision.probing.protocol import ProbeSettings
from mce_llm.vision.running import RunFolder, leave_if_asked, progress_bar, save_checkpoint
from mce_llm.vision.training.optimizers import restore_optimizer
from mce_llm.vision.training.schedules import learning_rate, set_learning_rate


class ProbeError(MceLlmError, RuntimeError):
    """A classifier that cannot be trained; the message says what to change."""


@dataclass
class Place:
    """Where a training is: what a checkpoint says beside weights.

    Attributes:
        phase: `choice` while several learning rates are compared, `final` for the classifier that is the result.
        first_step: Steps of the journal before this phase.
        epoch: Whole epochs done.
        batch: Batches done in the epoch that has begun.
        losses: For each head the sum of the losses in that epoch.
        correct: For each head the number of images that it got right.
        images: How many there were.
        choice: What the choice phase found, once it is over.
    """

    phase: str
    first_step: int = 0
    epoch: int = 0
    batch: int = 0
    losses: list[float] = field(default_factory=list)
    correct: list[float] = field(default_factory=list)
    images: int = 0
    choice: dict[str, Any] = field(default_factory=dict)

    def begin_epoch(self, heads: int) -> None:
        """Set the sums to zero."""
        self.batch, self.images = 0, 0
        self.losses, self.correct = [0.0] * heads, [0.0] * heads


def fit_heads(
    heads: ParallelHeads,
    rates: Sequence[float],
    batches: FeatureBatches,
    settings: ProbeSettings,
    run: RunFolder,
    place: Place,
    state: Mapping[str, Any] | None = None,
    watch: Callable[[], Mapping[str, float]] | None = None,
) -> None:
    """Train all heads to the end of the protocol. All processes call this.

    After each epoch a line of metrics.jsonl has for each head the mean training loss (nats) and accuracy, and what
    `watch` gives; then a checkpoint is written.

    Args:
        heads: The classifiers, on the device.
        rates: Their learning rates for a batch of 256, as the settings give them.
        batches: What to train on.
        settings: The protocol.
        run: Where to write.
        place: Where the training is; moved on.
        state: The checkpoint to go on from, as `load_checkpoint` gave it.
        watch: Gives further numbers at the end of an epoch.

    Raises:
        ProbeError: The loss of the only head is no longer finite.
    """
    scaled = [learning_rate(rate, settings.batch_size) for rate in rates]
    optimizer = heads_optimizer(settings.optimizer, heads, scaled, settings.momentum, settings.weight_decay)
    if state is not None:
        heads.load_state_dict(state["heads"])
        restore_optimizer(optimizer, state["optimizer"])
    else:
        place.begin_epoch(len(rates))
    per_epoch = len(batches)

    def save() -> None:
        save_checkpoint(
            run.checkpoint_file,
            {"place": vars(place), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()},
        )

    done = place.epoch * per_epoch + place.batch
    bar = progress_bar(settings.epochs * per_epoch, f"classifier ({place.phase})", initial=done)
    with training(), bar:
        while place.epoch < settings.epochs:
            for features, labels in batches.epoch(place.epoch, place.batch):
                share = settings.share(place.epoch * per_epoch + place.batch, per_epoch)
                set_learning_rate(optimizer, share)
                result = heads.train_step(optimizer, features, labels)
                _note(place, result.losses, result.correct, result.images)
                _check_alive(place, scaled)
                bar.update()
                leave_if_asked(save, run.checkpoint_file)
            run.log(
                place.first_step + (place.epoch + 1) * per_epoch,
                {**_epoch_line(place, rates), **(watch() if watch else {})},
            )
            place.epoch += 1
            place.begin_epoch(len(rates))
            save()


def _note(place: Place, losses: Tensor, correct: Tensor, images: int) -> None:
    place.batch += 1
    place.images += images
    place.losses = [sum(pair) for pair in zip(place.losses, losses.tolist(), strict=True)]
    place.correct = [sum(pair) for pair in zip(place.correct, correct.tolist(), strict=True)]


def _check_alive(place: Place, scaled: Sequence[float]) -> None:
    """One head of several may diverge, and is then not chosen; an only one, or all of them, may not."""
    if not any(map(math.isfinite, place.losses)):
        rates = ", ".join(f"{rate:g}" for rate in scaled)
        raise ProbeError(
            f"the loss is not finite in epoch {place.epoch + 1}, step {place.batch}, at the learning rate {rates} (after "
            "scaling by batch_size/256); lower learning_rates"
        )


def _epoch_line(place: Place, rates: Sequence[float]) -> dict[str, float | int | str]:
    line: dict[str, float | int | str] = {"phase": place.phase, "epoch": place.epoch + 1}
    for rate, loss, correct in zip(rates, place.losses, place.correct, strict=True):
        end = f"/lr_{rate:g}" if len(rates) > 1 else ""
        if math.isfinite(loss):  # NaN is no JSON
            line[f"train_loss{end}"] = loss / place.images
        line[f"train_top1{end}"] = correct / place.images
    return line


def finite_heads(heads: ParallelHeads) -> list[bool]:
    """Which of the heads have finite weights."""
    return [
        all(bool(torch.isfinite(parameter).all()) for parameter in head.parameters()) for head in heads.heads
    ]
