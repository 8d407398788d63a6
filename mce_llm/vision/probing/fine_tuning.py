"""Fine-tuning of the whole encoder with a new classifier on few labels: settings, the network, and the training loop."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from mce_llm.running.preemption import training
from mce_llm.running.settings import raise_all
from mce_llm.vision.data import ViewLoader
from mce_llm.vision.models import synchronise_norms
from mce_llm.vision.probing.fitting import ProbeError
from mce_llm.vision.probing.heads import INITIAL_STD
from mce_llm.vision.running import RunFolder, leave_if_asked, load_checkpoint, progress_bar, save_checkpoint
from mce_llm.vision.running.checkpoint import restore_random_state
from mce_llm.vision.training.optimizers import optimizer_of, restore_optimizer
from mce_llm.vision.training.schedules import learning_rate, set_learning_rate, warmup_cosine


@dataclass
class FineTuningSettings:
    """The protocol; its defaults are those of the 1 % setting of Barlow Twins' published evaluation."""

    subset_file: str | None = field(
        default=None,
        metadata={"help": "List of the training images to use, a file name a line (SimCLR's 1percent.txt)."},
    )
    fraction: float | None = field(
        default=None,
        metadata={
            "help": "Instead of subset_file: this share of the training images, balanced over classes."
        },
    )
    encoder_learning_rate: float = field(
        default=0.002, metadata={"help": "Of the encoder, for a batch of 256; multiplied by batch_size/256."}
    )
    classifier_learning_rate: float = field(
        default=0.5, metadata={"help": "Of the new classifier, for a batch of 256."}
    )
    batch_size: int = field(default=256, metadata={"help": "Images of a step, over all processes."})
    epochs: int = field(default=20, metadata={"help": "Passes over the chosen images."})
    warmup_epochs: float = field(
        default=0.0, metadata={"help": "Epochs of linear warm-up before the cosine."}
    )
    momentum: float = field(default=0.9, metadata={"help": "Of SGD."})
    weight_decay: float = field(default=0.0, metadata={"help": "Of SGD, on all parameters."})
    crop_scale_min: float = field(
        default=0.08, metadata={"help": "Least share of an image's area in a random crop."}
    )
    sync_batch_norm: bool = field(
        default=True,
        metadata={
            "help": "Batch norms see the batch of all processes, so that the result does not depend on how many there are. "
            "Published runs often had statistics of each GPU alone."
        },
    )
    encode_batch_size: int = field(
        default=256,
        metadata={"help": "Images that each process evaluates at once; changes speed and memory alone."},
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Unusable values; the message lists them all.
        """
        problems = []
        if (self.subset_file is None) == (self.fraction is None):
            problems.append(
                f"give one of subset_file and fraction, got {'none' if self.fraction is None else 'both'}; fraction 1 is "
                "all labels"
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            problems.append(f"fraction must be in (0, 1], got {self.fraction}; 0.01 and 0.1 are usual")
        for name in ("encoder_learning_rate", "classifier_learning_rate", "weight_decay"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                problems.append(f"{name} must be at least 0 and finite, got {value}")
        for name in ("batch_size", "epochs", "encode_batch_size"):
            if (count := getattr(self, name)) < 1:
                problems.append(f"{name} must be at least 1, got {count}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            problems.append(f"warmup_epochs must be in [0, epochs = {self.epochs}], got {self.warmup_epochs}")
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum must be in [0, 1), got {self.momentum}; 0.9 is the usual choice")
        if not 0 < self.crop_scale_min <= 1:
            problems.append(f"crop_scale_min must be in (0, 1], got {self.crop_scale_min}; 0.08 is usual")
        raise_all(problems)


def with_classifier(encoder: nn.Module, width: int, num_classes: int, seed: int) -> nn.Sequential:
    """The encoder and behind it a linear classifier with small random weights: images to logits.

    Args:
        encoder: Images to features.
        width: Of the features.
        num_classes: C.
        seed: Of the classifier's weights.

    Returns:
        A module with `encoder` and `classifier`.
    """
    classifier = nn.Linear(width, num_classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        classifier.weight.copy_(torch.randn(num_classes, width, generator=generator) * INITIAL_STD)
        classifier.bias.zero_()
    return nn.Sequential(OrderedDict(encoder=encoder, classifier=classifier))


def fine_tune(model: nn.Sequential, loader: ViewLoader, settings: FineTuningSettings, run: RunFolder) -> None:
    """Train encoder and classifier by SGD on the mean cross-entropy, the learning rates falling by half a cosine.

    Batch norms are in training mode. All processes call this; it goes on from the run's checkpoint, if there is one.
    After each epoch a line of metrics.jsonl has the mean training loss (nats) and accuracy.

    Args:
        model: From `with_classifier`; trained in place.
        loader: Shuffled batches of random crops, as many in every process, all of the same size.
        settings: The protocol.
        run: Where to write.

    Raises:
        ProbeError: The loss is not finite.
        BackboneError: The encoder's batch norms cannot be synchronised over processes.
    """
    accelerator = run.accelerator
    if settings.sync_batch_norm and accelerator.num_processes > 1:
        synchronise_norms(model, accelerator.device)  # the modules inside are replaced
    groups = [
        {
            "params": list(model.get_submodule(name).parameters()),
            "lr": learning_rate(rate, settings.batch_size),
            "weight_decay": settings.weight_decay,
        }
        for name, rate in (
            ("encoder", settings.encoder_learning_rate),
            ("classifier", settings.classifier_learning_rate),
        )
    ]
    optimizer = optimizer_of("sgd", groups, lr=0.0, momentum=settings.momentum)
    epoch, batch, sums = 0, 0, torch.zeros(3, dtype=torch.float64)
    state: dict[str, Any] | None = None
    if run.checkpoint is not None:
        state = load_checkpoint(run.checkpoint)
        model.load_state_dict(state["model"])
    network, optimizer = accelerator.prepare(model, optimizer)
    if state is not None:
        restore_optimizer(optimizer, state["optimizer"])
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        restore_random_state(state)
        epoch, batch, sums = state["epoch"], state["batch"], state["sums"]
    per_epoch = len(loader)
    run.rewind(epoch * per_epoch)
    total, warmup = settings.epochs * per_epoch, round(settings.warmup_epochs * per_epoch)

    def save() -> None:
        save_checkpoint(
            run.checkpoint_file,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                "epoch": epoch,
                "batch": batch,
                "sums": sums,
            },
        )

    network.train()
    bar = progress_bar(total, "fine-tuning", initial=epoch * per_epoch + batch)
    with training(), bar:
        while epoch < settings.epochs:
            loader.set_epoch(epoch, batch)
            for images in loader:
                set_learning_rate(optimizer, warmup_cosine(epoch * per_epoch + batch, total, warmup, 1.0))
                sums += _step(network, optimizer, accelerator, images.images, images.labels)
                batch += 1
                if not math.isfinite(sums[0]):
                    raise ProbeError(
                        f"the loss is not finite in epoch {epoch + 1}, step {batch}; lower encoder_learning_rate "
                        f"({settings.encoder_learning_rate:g}) or classifier_learning_rate "
                        f"({settings.classifier_learning_rate:g})"
                    )
                bar.update()
                leave_if_asked(save, run.checkpoint_file)
            loss, correct, count = sums.tolist()
            epoch, batch, sums = epoch + 1, 0, torch.zeros_like(sums)
            run.log(
                epoch * per_epoch,
                {"epoch": epoch, "train_loss": loss / count, "train_top1": correct / count},
            )
            save()


def _step(
    network: nn.Module, optimizer: Any, accelerator: Accelerator, images: Tensor, labels: Tensor
) -> Tensor:
    """One optimizer step; the sum of losses, of hits, and the images of all processes, float64 on the CPU."""
    labels = labels.to(accelerator.device, non_blocking=True)
    optimizer.zero_grad(set_to_none=True)
    logits = network(images.to(accelerator.device, non_blocking=True)).float()
    losses = F.cross_entropy(logits, labels, reduction="none")
    accelerator.backward(losses.mean())
    optimizer.step()
    hits = (logits.argmax(dim=1) == labels).sum()
    noted = torch.stack([losses.detach().sum(), hits.float(), losses.new_tensor(float(len(labels)))])
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(noted)
    return noted.cpu().double()
