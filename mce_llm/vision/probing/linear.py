"""The linear evaluation: which learning rate, chosen on held-out training images, and then the one classifier to report.

The images for evaluation are looked at once, by the last state of that classifier. (The official code evaluates after
each epoch and reports the best; that is a choice on the test images, and flatters.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from mce_llm.running.files import whole_file
from mce_llm.running.processes import say
from mce_llm.vision.data import DataSettings, ImageDataError, ImageSource, balanced_indices
from mce_llm.vision.probing.accuracy import rank_of_label
from mce_llm.vision.probing.batches import EncodedBatches, FeatureBatches, KeptBatches
from mce_llm.vision.probing.encoders import Encoder
from mce_llm.vision.probing.features import Features
from mce_llm.vision.probing.fitting import Place, ProbeError, finite_heads, fit_heads
from mce_llm.vision.probing.heads import ParallelHeads
from mce_llm.vision.probing.images import encode_images
from mce_llm.vision.probing.protocol import ProbeSettings
from mce_llm.vision.running import RunFolder, load_checkpoint
from mce_llm.vision.running.checkpoint import restore_random_state

CLASSIFIER = "classifier.safetensors"


class Probed(NamedTuple):
    """What the training of a linear classifier left.

    Attributes:
        heads: The classifier; `head` of them is meant.
        head: Its number.
        learning_rate: Its learning rate, for a batch of 256.
        choice: How that was chosen; empty where there was one.
        train_images: How many images it was trained on.
    """

    heads: ParallelHeads
    head: int
    learning_rate: float
    choice: dict[str, Any]
    train_images: int


class LinearProbe:
    """One linear evaluation on frozen features.

    Args:
        encoder: What gives the features.
        train: The labelled training images.
        data: Size and workers.
        settings: The protocol.
        run: Where to write.
    """

    def __init__(
        self,
        encoder: Encoder,
        train: ImageSource,
        data: DataSettings,
        settings: ProbeSettings,
        run: RunFolder,
    ) -> None:
        self.encoder, self.train, self.data, self.settings, self.run = encoder, train, data, settings, run
        self._kept: Features | None = None
        if settings.cached_features:
            self._kept = self.encode(train)

    def encode(self, source: ImageSource) -> Features:
        """Features of a source in its evaluation view."""
        return encode_images(
            self.encoder.module,
            source,
            self.train,
            self.data,
            self.run.accelerator,
            self.settings.encode_batch_size,
        )

    def fit(self) -> Probed:
        """Train, from the beginning or from the run's checkpoint. All processes call this.

        Returns:
            The classifier.

        Raises:
            ProbeError: The training diverged.
            ImageDataError: There are too few images to hold some out.
        """
        state, place = None, None
        if self.run.checkpoint is not None:
            state = load_checkpoint(self.run.checkpoint)
            restore_random_state(state)
            place = Place(**state["place"])
        rates = self.settings.learning_rates
        everything = list(range(len(self.train)))
        if len(rates) == 1:
            heads, _ = self._train(rates, everything, place or Place("final"), state)
            return Probed(heads, 0, rates[0], {}, len(everything))
        held_out = self._held_out()
        kept = sorted(set(everything) - set(held_out))
        if place is None or place.phase == "choice":
            place = place or Place("choice")
            heads, steps = self._train(rates, kept, place, state, held_out)
            choice, state = self._chosen(heads, held_out, len(kept)), None
            head = rates.index(choice["learning_rate"])
            if not self.settings.retrain:
                return Probed(heads, head, rates[head], choice, len(kept))
            place = Place("final", first_step=steps, choice=choice)
        rate = place.choice["learning_rate"]
        heads, _ = self._train([rate], everything, place, state)
        return Probed(heads, 0, rate, place.choice, len(everything))

    def _train(
        self,
        rates: list[float],
        indices: list[int],
        place: Place,
        state: Mapping[str, Any] | None,
        held_out: list[int] | None = None,
    ) -> tuple[ParallelHeads, int]:
        """The heads after all epochs, and the steps that this takes from the beginning."""
        batches = self._batches(indices)
        heads = ParallelHeads(
            self._width(),
            len(self.train.classes),
            len(rates),
            batch_norm=self.settings.batch_norm,
            seed=self.run.settings.seed,
        ).to(self.run.accelerator.device)
        if state is not None:
            self.run.rewind(place.first_step + place.epoch * len(batches))
        watch = None
        if held_out is not None:
            apart = self._features_of(held_out)

            def watch() -> dict[str, float]:
                found = _accuracies(heads, apart.features, apart.labels)
                return {
                    f"held_out_top1/lr_{rate:g}": value
                    for rate, value in zip(rates, found, strict=True)
                    if value is not None
                }

        fit_heads(heads, rates, batches, self.settings, self.run, place, state, watch)
        return heads, self.settings.epochs * len(batches)

    def _batches(self, indices: list[int]) -> FeatureBatches:
        settings, run = self.settings, self.run
        if self._kept is not None:
            part = torch.tensor(indices)
            features, labels = self._kept.features[part], self._kept.labels[part]
            return KeptBatches(features, labels, settings.batch_size, run.accelerator, run.settings.seed)
        return EncodedBatches(
            self.encoder.module,
            self.train if len(indices) == len(self.train) else self.train.subset(indices),
            self.data,
            settings.batch_size,
            settings.encode_batch_size,
            settings.crop_scale_min,
            run.accelerator,
            run.settings.seed,
        )

    def _width(self) -> int:
        if self._kept is not None:
            return self._kept.features.shape[1]
        size = self.data.image_size
        device = self.run.accelerator.device
        with torch.no_grad():
            return (
                self.encoder.module.to(device).eval()(torch.zeros(1, 3, size, size, device=device)).shape[1]
            )

    def _held_out(self) -> list[int]:
        count = max(len(self.train.classes), round(self.settings.held_out * len(self.train)))
        if count >= len(self.train):
            raise ImageDataError(
                f"{len(self.train)} training images are too few to hold one of each of {len(self.train.classes)} classes out; "
                "give one learning rate"
            )
        return balanced_indices(self.train.labels, count)

    def _features_of(self, indices: list[int]) -> Features:
        if self._kept is None:
            return self.encode(self.train.subset(indices))
        part = torch.tensor(indices)
        return Features(self._kept.features[part], self._kept.labels[part], part)

    def _chosen(self, heads: ParallelHeads, held_out: list[int], trained_on: int) -> dict[str, Any]:
        """The learning rate of the head that is best on the held-out images; of equally good ones the smallest."""
        apart, rates = self._features_of(held_out), self.settings.learning_rates
        found = dict(zip(rates, _accuracies(heads, apart.features, apart.labels), strict=True))
        alive = [rate for rate in sorted(rates) if found[rate] is not None]
        if not alive:
            raise ProbeError("the classifiers of all learning rates have diverged; lower learning_rates")
        best = max(alive, key=lambda rate: (found[rate], -rate))
        for rate in rates:
            value = found[rate]
            say(
                f"learning rate {rate:g}: "
                + ("diverged" if value is None else f"{value:.2%} on held-out images")
            )
        say(f"chosen: {best:g}, on {len(held_out):,} of the training images")
        if best in (min(rates), max(rates)):
            say(f"{best:g} is at the end of learning_rates {rates}; a better one may lie beyond it")
        return {
            "learning_rate": best,
            "chosen_on": f"{len(held_out)} held-out training images",
            "trained_on": trained_on,
            "held_out_top1": {f"{rate:g}": value for rate, value in found.items()},
        }


def save_classifier(probed: Probed, classes: list[str], folder: Path) -> None:
    """Write the classifier of a linear evaluation, with the statistics of its batch norm; see `write_classifier`.

    Args:
        probed: The classifier.
        classes: Their names.
        folder: Where to write it.
    """
    norm = probed.heads.norm.state_dict()
    norm.pop("num_batches_tracked", None)
    write_classifier({**probed.heads.heads[probed.head].state_dict(), **norm}, classes, folder)


def write_classifier(tensors: Mapping[str, Tensor], classes: list[str], folder: Path) -> None:
    """Write classifier.safetensors in one move: weight (C, d), bias (C,), and running_mean and running_var (d,), if any.

    logits = weight · (x − running_mean)/√(running_var + 1e-6) + bias; the file's metadata has the names of the classes.

    Args:
        tensors: By these names.
        classes: The names of the classes.
        folder: Where to write it.
    """
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"format": "pt", "classes": json.dumps(classes, ensure_ascii=False)}
    with whole_file(folder / CLASSIFIER) as beside:
        save_file(whole, beside, metadata=metadata)


def _accuracies(heads: ParallelHeads, features: Tensor, labels: Tensor) -> list[float | None]:
    """Top-1 of each head; None for one that diverged."""
    return [
        (rank_of_label(heads.logits(features, number), labels) == 0).float().mean().item() if finite else None
        for number, finite in enumerate(finite_heads(heads))
    ]
