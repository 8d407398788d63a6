"""How a linear classifier is trained on an encoder's features: the settings, and what the literature's protocols set."""

from __future__ import annotations

from dataclasses import dataclass, field

from mce_llm.running.messages import nearest_hint
from mce_llm.running.settings import raise_all
from mce_llm.vision.training.optimizers import OPTIMIZERS
from mce_llm.vision.training.schedules import step_decay, warmup_cosine

SCHEDULES = ("cosine", "step")


@dataclass
class ProbeSettings:
    """The protocol; its defaults are those of Matrix-SSL's linear evaluation on ImageNet."""

    optimizer: str = field(default="lars", metadata={"help": "lars or sgd."})
    learning_rates: list[float] = field(
        default_factory=lambda: [0.03],
        metadata={
            "help": "For a batch of 256; multiplied by batch_size/256. Of several, each gets a classifier, and the one that "
            "is best on a held-out part of the training images is taken."
        },
    )
    batch_size: int = field(default=4096, metadata={"help": "Images of a step, over all processes."})
    epochs: int = field(default=100, metadata={"help": "Passes over the training images."})
    warmup_epochs: float = field(default=0.0, metadata={"help": "Epochs of linear warm-up; cosine only."})
    schedule: str = field(
        default="cosine", metadata={"help": "cosine to 0, or step: a tenth at each milestone."}
    )
    milestones: list[int] = field(
        default_factory=lambda: [60, 80], metadata={"help": "Epochs of the schedule step."}
    )
    momentum: float = field(default=0.9, metadata={"help": "Of the optimizer."})
    weight_decay: float = field(default=0.0, metadata={"help": "Of the optimizer."})
    batch_norm: bool = field(
        default=True, metadata={"help": "Batch norm without affine parameters before the classifier."}
    )
    cached_features: bool = field(
        default=False,
        metadata={
            "help": "Encode each training image once, without augmentation, and train on that: minutes instead of hours, "
            "and another protocol than that of random crops."
        },
    )
    crop_scale_min: float = field(
        default=0.08,
        metadata={"help": "Least share of an image's area in a random crop; not for cached_features."},
    )
    held_out: float = field(
        default=0.1,
        metadata={"help": "Share of the training images that chooses among several learning rates."},
    )
    retrain: bool = field(
        default=True,
        metadata={
            "help": "Train again on all training images with the chosen rate. Otherwise the classifier that was trained "
            "without the held-out ones is the result."
        },
    )
    encode_batch_size: int = field(
        default=256,
        metadata={"help": "Images that each process encodes at once; changes speed and memory alone."},
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Unusable values; the message lists them all.
        """
        problems = []
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if (value := getattr(self, name)) not in known:
                problems.append(
                    f"{name} must be {' or '.join(known)}, got {value!r}{nearest_hint(value, known)}"
                )
        problems += [
            f"learning_rates must be positive, got {rate}"
            for rate in self.learning_rates
            if not 0 < rate < float("inf")
        ]
        if len(set(self.learning_rates)) < len(self.learning_rates):
            problems.append(f"learning_rates has one twice: {self.learning_rates}")
        for name in ("batch_size", "epochs", "encode_batch_size"):
            if (count := getattr(self, name)) < 1:
                problems.append(f"{name} must be at least 1, got {count}")
        if self.batch_size == 1 and self.batch_norm:
            problems.append("batch_norm needs a batch_size of at least 2, got 1")
        if not 0 <= self.warmup_epochs <= self.epochs:
            problems.append(f"warmup_epochs must be in [0, epochs = {self.epochs}], got {self.warmup_epochs}")
        if self.schedule == "step" and self.warmup_epochs:
            problems.append("warmup_epochs goes with schedule cosine; set it to 0")
        if self.schedule == "step" and any(not 0 < epoch < self.epochs for epoch in self.milestones):
            problems.append(f"milestones must be in (0, epochs = {self.epochs}), got {self.milestones}")
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum must be in [0, 1), got {self.momentum}; 0.9 is the usual choice")
        if not 0 <= self.weight_decay < float("inf"):
            problems.append(f"weight_decay must be at least 0, got {self.weight_decay}")
        if not 0 < self.crop_scale_min <= 1:
            problems.append(f"crop_scale_min must be in (0, 1], got {self.crop_scale_min}; 0.08 is usual")
        if not 0 < self.held_out < 1:
            problems.append(f"held_out must be in (0, 1), got {self.held_out}; 0.1 is a good choice")
        raise_all(problems)

    def share(self, step: int, steps_per_epoch: int) -> float:
        """The share of its learning rate that every head has in an optimizer step.

        Args:
            step: Steps done before it.
            steps_per_epoch: Of this training.

        Returns:
            In [0, 1].
        """
        if self.schedule == "step":
            return step_decay(step, [epoch * steps_per_epoch for epoch in self.milestones], 1.0)
        warmup = round(self.warmup_epochs * steps_per_epoch)
        return warmup_cosine(step, self.epochs * steps_per_epoch, warmup, 1.0)
