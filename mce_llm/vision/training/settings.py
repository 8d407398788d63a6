"""What a pretraining run can be told about its networks, loss, optimizer and monitors."""

from __future__ import annotations

from dataclasses import dataclass, field

from mce_llm.running.messages import nearest_hint
from mce_llm.running.settings import mapping_of, raise_all
from mce_llm.vision.data.settings import HOW_ALONE
from mce_llm.vision.models import BackboneError, BackboneSpec
from mce_llm.vision.training.method import METHODS
from mce_llm.vision.training.optimizers import OPTIMIZERS

# What a run that goes on must not change: its weights, its optimizer's state or its order of images would not fit.
FIXED = (
    "method",
    "backbone",
    "stem",
    "backbone_kwargs",
    "embedding_dim",
    "projector_dim",
    "predictor_dim",
    "optimizer",
    "batch_size",
    "epochs",
    "online_probe",
    "dataset",
    "train_split",
    "limit",
    "eval_from_train",
    "image_size",
    "mean",
    "std",
    "image_column",
    "label_column",
    "seed",
)
# How the same is computed or read; rounding aside, nothing of what is trained depends on it.
WITHOUT_EFFECT = (*HOW_ALONE, "channels_last", "compile")

_SHORT = 20  # epochs, of which ten of warm-up would be most or all


@dataclass
class PretrainSettings:
    """Networks, loss, optimizer and monitors; the defaults are the official recipe's."""

    method: str = field(default="matrix_ssl", metadata={"help": f"The loss: {', '.join(METHODS)}."})
    loss_options: str | None = field(
        default=None,
        metadata={
            "help": "Mapping of the loss's own settings, such as {gamma: 1.0, mu: 1.0, lam: 1.0, order: 4, variant: paper}."
        },
    )
    backbone: str = field(
        default="resnet50", metadata={"help": "Encoder: a model of torchvision, or timm/NAME."}
    )
    stem: str = field(
        default="imagenet",
        metadata={"help": "imagenet, or cifar: 3×3 convolution of stride 1, no pooling (ResNets)."},
    )
    backbone_kwargs: str | None = field(
        default=None,
        metadata={"help": "Mapping of further arguments for the library that builds the encoder."},
    )
    embedding_dim: int = field(default=2048, metadata={"help": "Width d of the embeddings the loss sees."})
    projector_dim: int = field(default=2048, metadata={"help": "Width of the projector's hidden layers."})
    predictor_dim: int = field(default=512, metadata={"help": "Width of the predictor's bottleneck."})
    teacher_momentum: float = field(
        default=0.996,
        metadata={"help": "Momentum of the averaged teacher at the start; it rises to 1 by a cosine."},
    )
    epochs: int = field(default=100, metadata={"help": "Passes over the training images."})
    batch_size: int = field(
        default=1024,
        metadata={"help": "Images in a step over all processes; the loss is of all of them together."},
    )
    optimizer: str = field(default="sgd", metadata={"help": "sgd or lars."})
    base_learning_rate: float = field(
        default=0.5, metadata={"help": "For 256 images; the learning rate is this × batch_size / 256."}
    )
    weight_decay: float = field(default=1e-5, metadata={"help": "Weight decay."})
    momentum: float = field(default=0.9, metadata={"help": "The optimizer's momentum."})
    warmup_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Epochs in which the learning rate rises from 0; a cosine to 0 follows. By default 10, or a tenth of "
            "fewer than 20 epochs."
        },
    )
    channels_last: bool = field(
        default=True,
        metadata={"help": "Keep images and kernels with channels last in memory, which is faster."},
    )
    compile: bool = field(default=False, metadata={"help": "Let torch.compile compile the student."})
    monitor_every: int = field(
        default=1,
        metadata={
            "help": "Measure kNN accuracy and spectra before training and after every so many epochs; 0 never. Without labels of "
            "two classes there is no kNN accuracy."
        },
    )
    monitor_images: int = field(
        default=5000,
        metadata={"help": "Training images that the kNN monitor compares with, as many of each class."},
    )
    knn_k: int = field(default=20, metadata={"help": "Neighbours of the kNN monitor."})
    knn_temperature: float = field(
        default=0.1, metadata={"help": "Its temperature τ: votes weigh exp(cosine/τ)."}
    )
    online_probe: bool = field(
        default=True,
        metadata={
            "help": "Train a linear classifier beside the encoder, on detached features; left out without labels of two classes."
        },
    )
    probe_learning_rate: float = field(default=0.1, metadata={"help": "Its learning rate, for 256 images."})
    checkpoint_epochs: int = field(default=1, metadata={"help": "Epochs between checkpoints."})
    checkpoint_steps: int | None = field(
        default=None, metadata={"help": "Also write one after every so many steps; for epochs of hours."}
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Unusable values; the message lists all.
        """
        problems: list[str] = []
        if self.method not in METHODS:
            problems.append(f"unknown method {self.method!r}{nearest_hint(self.method, METHODS)}")
        self.loss_arguments = mapping_of("loss_options", self.loss_options, problems)
        self.backbone_arguments = mapping_of("backbone_kwargs", self.backbone_kwargs, problems)
        try:
            self.spec = BackboneSpec(self.backbone, self.stem, self.backbone_arguments)
        except BackboneError as error:
            problems.append(str(error))
        if self.optimizer not in OPTIMIZERS:
            problems.append(f"optimizer must be {' or '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        for name in (
            "embedding_dim",
            "projector_dim",
            "predictor_dim",
            "epochs",
            "monitor_images",
            "knn_k",
            "checkpoint_epochs",
        ):
            if (value := getattr(self, name)) < 1:
                problems.append(f"{name} must be at least 1, got {value}")
        if self.batch_size < 2:
            problems.append(
                f"batch_size must be at least 2, as the loss is of a covariance, got {self.batch_size}"
            )
        if self.monitor_every < 0:
            problems.append(
                f"monitor_every must be 0 (never) or a number of epochs, got {self.monitor_every}"
            )
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            problems.append(f"checkpoint_steps must be at least 1, got {self.checkpoint_steps}")
        for name in ("base_learning_rate", "knn_temperature", "probe_learning_rate"):
            if not (value := getattr(self, name)) > 0:
                problems.append(f"{name} must be positive, got {value}")
        for name in ("weight_decay", "warmup"):
            if not (value := getattr(self, name)) >= 0:
                problems.append(
                    f"{name.replace('warmup', 'warmup_epochs')} must not be negative, got {value}"
                )
        for name in ("momentum", "teacher_momentum"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                problems.append(f"{name} must be in [0, 1], got {value}")
        if self.warmup >= self.epochs > 0:
            problems.append(
                f"warmup_epochs ({self.warmup:g}) must be fewer than epochs ({self.epochs}); leave it out for a tenth of them"
            )
        raise_all(problems)

    @property
    def warmup(self) -> float:
        """Epochs of warm-up: those that were given, or else ten as in the recipe, of short trainings a tenth."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return 10 if self.epochs >= _SHORT else self.epochs / 10
