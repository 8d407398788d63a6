"""What a detection run can be told: data, detector, schedule. Each group checks itself and reports all its problems.

Values that depend on each other's groups (the batch and the processes, say) are checked where they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mce_llm.running.messages import nearest_hint
from mce_llm.running.settings import mapping_of, raise_all

ARCHITECTURES = ("c4", "fpn")
ORIENTATIONS = ("stored", "upright")
NORMS = ("sync_bn", "frozen_bn", "bn")
_USUAL_WARMUP = 1000
SCHEDULES = {"1x": (90_000, (60_000, 80_000)), "2x": (180_000, (120_000, 160_000))}


@dataclass
class CocoDataSettings:
    """Images and annotations in COCO's layout, and the sizes at which they are seen."""

    train_images: str | None = field(default=None, metadata={"help": "Folder of the images to train on."})
    train_annotations: str | None = field(default=None, metadata={"help": "Their instances_*.json."})
    eval_images: str | None = field(default=None, metadata={"help": "Folder of the images to be judged on."})
    eval_annotations: str | None = field(default=None, metadata={"help": "Their instances_*.json."})
    image_orientation: str = field(
        default="stored",
        metadata={
            "help": "What boxes and masks are of: the pixels as stored (COCO), or the image as its EXIF orientation turns "
            "it (upright)."
        },
    )
    train_limit: int | None = field(
        default=None, metadata={"help": "Train on the first so many images alone."}
    )
    eval_limit: int | None = field(
        default=None, metadata={"help": "Judge on the first so many images alone."}
    )
    filter_empty: bool = field(
        default=True,
        metadata={
            "help": "Leave images without instances (crowds do not count) out of training, as detectron2 does."
        },
    )
    short_sides: list[int] = field(
        default_factory=lambda: [640, 672, 704, 736, 768, 800],
        metadata={"help": "Lengths of the short side in training, one drawn for each image."},
    )
    eval_short_side: int = field(default=800, metadata={"help": "Length of the short side in evaluation."})
    max_size: int = field(default=1333, metadata={"help": "Longest long side, in training and evaluation."})
    flip_probability: float = field(default=0.5, metadata={"help": "Of a horizontal flip in training."})
    group_by_shape: bool = field(
        default=True,
        metadata={"help": "Batches of wide images or of tall ones, never both, which saves padding."},
    )
    num_workers: int = field(
        default=4, metadata={"help": "Processes that decode images, per training process."}
    )

    def __post_init__(self) -> None:
        """Check all values.

        Raises:
            ConfigurationError: All that cannot be used.
        """
        problems: list[str] = []
        _one_of("image_orientation", self.image_orientation, ORIENTATIONS, problems)
        _at_least(self, ("eval_short_side", "max_size"), 1, problems)
        _at_least(self, ("num_workers",), 0, problems)
        for name in ("train_limit", "eval_limit"):
            if getattr(self, name) is not None:
                _at_least(self, (name,), 1, problems)
        if not self.short_sides or min(self.short_sides) < 1:
            problems.append(f"short_sides must be whole numbers from 1 on, got {self.short_sides}")
        elif max(self.short_sides) > self.max_size:
            problems.append(
                f"max_size must be at least the longest of short_sides, {max(self.short_sides)}, got {self.max_size}"
            )
        if self.eval_short_side > self.max_size >= 1:
            problems.append(
                f"eval_short_side must be at most max_size, {self.max_size}, got {self.eval_short_side}"
            )
        if not 0 <= self.flip_probability <= 1:
            problems.append(f"flip_probability must be in [0, 1], got {self.flip_probability}; 0.5 is usual")
        for split in ("train", "eval"):
            images, annotations = getattr(self, f"{split}_images"), getattr(self, f"{split}_annotations")
            if (images is None) != (annotations is None):
                here, lacking = (
                    ("images", "annotations") if annotations is None else ("annotations", "images")
                )
                problems.append(f"{split}_{here} needs {split}_{lacking} with it")
        if self.eval_annotations is None:
            problems.append("nothing to be judged on: give eval_images and eval_annotations")
        raise_all(problems)


@dataclass
class DetectorSettings:
    """Which Mask R-CNN: its body, its norms and its heads."""

    architecture: str = field(
        default="c4",
        metadata={"help": "c4: one map of stride 16, the last stage as head; fpn: a feature pyramid."},
    )
    backbone: str | None = field(
        default=None,
        metadata={"help": "A ResNet of torchvision, or timm/NAME; left out: the checkpoint's, or resnet50."},
    )
    backbone_kwargs: str | None = field(
        default=None,
        metadata={"help": "More arguments of its constructor, as a mapping."},
    )
    backbone_checkpoint: str | None = field(
        default=None, metadata={"help": "Output folder of a pretraining run; left out: random weights."}
    )
    backbone_weights: str | None = field(
        default=None,
        metadata={
            "help": "Instead: supervised weights of torchvision by name, such as IMAGENET1K_V1 (fetched)."
        },
    )
    norm: str = field(
        default="sync_bn",
        metadata={
            "help": "sync_bn or bn: trained batch norms, in the new layers too; frozen_bn: fixed, new layers without."
        },
    )
    trainable_layers: int = field(
        default=5,
        metadata={
            "help": "How many of stem, layer1 … layer4 are trained, from the end; 5: nothing is frozen."
        },
    )
    anchor_sizes: list[int] = field(
        default_factory=lambda: [32, 64, 128, 256, 512],
        metadata={"help": "Sides of the anchors in pixels; fpn: one for each of its five levels."},
    )
    fpn_channels: int = field(default=256, metadata={"help": "Channels of the pyramid (fpn)."})
    box_head_features: int = field(default=1024, metadata={"help": "Width of the two-layer box head (fpn)."})
    mask_head_channels: int = field(default=256, metadata={"help": "Channels of the mask head."})
    rpn_before_nms_train: int | None = field(
        default=None,
        metadata={"help": "Proposals of a level before NMS, training; left out: 12000 (c4), 2000 (fpn)."},
    )
    rpn_after_nms_train: int | None = field(
        default=None,
        metadata={"help": "Proposals of an image after NMS, training; left out: 2000 (c4), 1000 (fpn)."},
    )
    rpn_before_nms_eval: int | None = field(
        default=None,
        metadata={"help": "Proposals of a level before NMS, evaluation; left out: 6000 (c4), 1000 (fpn)."},
    )
    rpn_after_nms_eval: int = field(
        default=1000, metadata={"help": "Proposals of an image after NMS, evaluation."}
    )
    rpn_samples: int = field(default=256, metadata={"help": "Anchors of an image that the RPN's loss sees."})
    roi_samples: int = field(default=512, metadata={"help": "Proposals of an image that the box loss sees."})
    score_threshold: float = field(default=0.05, metadata={"help": "Detections below it are dropped."})
    detections_per_image: int = field(default=100, metadata={"help": "At most so many; COCO counts 100."})

    def __post_init__(self) -> None:
        """Check all values, and fill in what depends on the architecture.

        Raises:
            ConfigurationError: All that cannot be used.
        """
        problems: list[str] = []
        _one_of("architecture", self.architecture, ARCHITECTURES, problems)
        _one_of("norm", self.norm, NORMS, problems)
        c4 = self.architecture == "c4"
        if self.rpn_before_nms_train is None:
            self.rpn_before_nms_train = 12_000 if c4 else 2_000
        if self.rpn_after_nms_train is None:
            self.rpn_after_nms_train = 2_000 if c4 else 1_000
        if self.rpn_before_nms_eval is None:
            self.rpn_before_nms_eval = 6_000 if c4 else 1_000
        counts = ["fpn_channels", "box_head_features", "mask_head_channels", "rpn_samples", "roi_samples"]
        counts += ["rpn_before_nms_train", "rpn_after_nms_train", "rpn_before_nms_eval", "rpn_after_nms_eval"]
        _at_least(self, [*counts, "detections_per_image"], 1, problems)
        if not 0 <= self.trainable_layers <= 5:
            problems.append(
                f"trainable_layers must be 0 … 5, got {self.trainable_layers}; 5 trains everything, as the protocol does"
            )
        if not self.anchor_sizes or min(self.anchor_sizes) < 1:
            problems.append(f"anchor_sizes must be whole numbers from 1 on, got {self.anchor_sizes}")
        elif not c4 and len(self.anchor_sizes) != 5:
            problems.append(
                f"anchor_sizes must be five with fpn, one a level from stride 4 to 64, got {len(self.anchor_sizes)}"
            )
        if not 0 <= self.score_threshold < 1:
            problems.append(f"score_threshold must be in [0, 1), got {self.score_threshold}; 0.05 is usual")
        if self.backbone_checkpoint is not None:
            for name in ("backbone_weights", "backbone_kwargs"):
                if getattr(self, name) is not None:
                    problems.append(f"{name} cannot go with backbone_checkpoint, which says that itself")
        mapping_of("backbone_kwargs", self.backbone_kwargs, problems)
        raise_all(problems)


@dataclass
class ScheduleSettings:
    """How long, how fast, and what is written on the way. Everything is counted in iterations (optimizer steps)."""

    schedule: str = field(
        default="1x",
        metadata={"help": "1x: 90,000 iterations; 2x: 180,000; none: `iterations` and `steps` say it."},
    )
    iterations: int | None = field(default=None, metadata={"help": "Overrides the schedule's number."})
    steps: list[int] | None = field(
        default=None,
        metadata={
            "help": "After which iterations the learning rate falls to a tenth; overrides the schedule's."
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Images in a step, over all processes."})
    learning_rate: float = field(default=0.02, metadata={"help": "After the warm-up, for 16 images a step."})
    scale_learning_rate: bool = field(default=False, metadata={"help": "Multiply it by batch_size / 16."})
    warmup_iterations: int | None = field(
        default=None,
        metadata={"help": "Linear warm-up; 1,000 by default, or a tenth of fewer than 10,000 iterations."},
    )
    warmup_factor: float = field(
        default=0.001, metadata={"help": "Share of the learning rate it begins with."}
    )
    momentum: float = field(default=0.9, metadata={"help": "Of SGD."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Of all weights but those of norms."})
    norm_weight_decay: float = field(default=0.0, metadata={"help": "Of the norms' weights and biases."})
    clip_gradients: float | None = field(
        default=None, metadata={"help": "Largest norm of all gradients together; left out: not clipped."}
    )
    log_every: int = field(default=20, metadata={"help": "Iterations between two lines of the journal."})
    save_every: int = field(default=1000, metadata={"help": "Iterations between two checkpoints."})
    eval_every: int | None = field(
        default=None, metadata={"help": "Iterations between two evaluations; left out: at the end alone."}
    )
    eval_at_start: bool = field(default=False, metadata={"help": "Evaluate before the first step too."})
    eval_batch_size: int = field(default=1, metadata={"help": "Images at once in evaluation, per process."})
    drawn_images: int = field(default=9, metadata={"help": "Images in detections.png; 0: none."})
    drawn_threshold: float = field(default=0.5, metadata={"help": "Least score of what is drawn there."})
    evaluate_only: bool = field(default=False, metadata={"help": "Judge `detector` and train nothing."})
    detector: str | None = field(
        default=None, metadata={"help": "Output folder of a detection run, or a .safetensors file in it."}
    )

    def __post_init__(self) -> None:
        """Check all values, and fill in the schedule's.

        Raises:
            ConfigurationError: All that cannot be used.
        """
        problems: list[str] = []
        _one_of("schedule", self.schedule, (*SCHEDULES, "none"), problems)
        if self.schedule in SCHEDULES:
            iterations, steps = SCHEDULES[self.schedule]
            if self.iterations is None:
                self.iterations = iterations
            if self.steps is None:
                self.steps = list(steps) if self.iterations == iterations else None
                if self.steps is None:
                    problems.append(
                        f"iterations overrides schedule {self.schedule}, whose steps are at {list(steps)}: give steps too"
                    )
        if self.iterations is None and not self.evaluate_only and self.schedule == "none":
            problems.append("schedule none needs iterations")
        self.steps = self.steps or []
        if sorted(set(self.steps)) != self.steps or any(step < 1 for step in self.steps):
            problems.append(f"steps must be ascending numbers of iterations, got {self.steps}")
        elif self.steps and self.iterations is not None and self.steps[-1] >= self.iterations:
            problems.append(f"steps must come before the last iteration, {self.iterations}, got {self.steps}")
        counts = ["batch_size", "log_every", "save_every", "eval_batch_size"]
        counts += [name for name in ("iterations", "eval_every") if getattr(self, name) is not None]
        _at_least(self, counts, 1, problems)
        _at_least(self, ("drawn_images", "weight_decay", "norm_weight_decay"), 0, problems)
        if self.warmup_iterations is not None:
            _at_least(self, ("warmup_iterations",), 0, problems)
            if self.iterations is not None and 0 < self.iterations <= self.warmup_iterations:
                problems.append(
                    f"warmup_iterations ({self.warmup_iterations}) must be fewer than iterations ({self.iterations}); leave "
                    "it out for a tenth of them"
                )
        if not self.learning_rate > 0:
            problems.append(f"learning_rate must be above 0, got {self.learning_rate}; 0.02 is usual")
        if not 0 < self.warmup_factor <= 1:
            problems.append(f"warmup_factor must be in (0, 1], got {self.warmup_factor}; 0.001 is usual")
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum must be in [0, 1), got {self.momentum}; 0.9 is usual")
        if self.clip_gradients is not None and not self.clip_gradients > 0:
            problems.append(
                f"clip_gradients must be above 0, got {self.clip_gradients}; leave it out for none"
            )
        if not 0 <= self.drawn_threshold <= 1:
            problems.append(f"drawn_threshold must be in [0, 1], got {self.drawn_threshold}")
        if self.evaluate_only and self.detector is None:
            problems.append("evaluate_only needs detector, the output folder of a detection run")
        if self.detector is not None and not self.evaluate_only:
            problems.append("detector is what evaluate_only judges; training begins from backbone_checkpoint")
        raise_all(problems)

    @property
    def warmup(self) -> int:
        """Iterations of the warm-up."""
        if self.warmup_iterations is not None:
            return self.warmup_iterations
        return _USUAL_WARMUP if self.iterations is None else min(_USUAL_WARMUP, self.iterations // 10)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up, scaled to the batch where that was asked for."""
        return self.learning_rate * (self.batch_size / 16 if self.scale_learning_rate else 1.0)

    def summary(self) -> str:
        """One line on how long and how fast."""
        scaled = " (scaled to the batch)" if self.scale_learning_rate else ""
        return (
            f"{self.iterations} iterations of {self.batch_size} images; learning rate {self.peak_learning_rate:g}{scaled} "
            f"after {self.warmup} of warm-up, a tenth of it after each of {self.steps}"
        )

    def learning_rate_at(self, iteration: int) -> float:
        """The learning rate of a step: linear warm-up, then a tenth after each of `steps`.

        Args:
            iteration: How many steps were made before it.

        Returns:
            The rate.
        """
        rate = self.peak_learning_rate * 0.1 ** sum(iteration >= step for step in self.steps or ())
        if iteration >= self.warmup:
            return rate
        share = iteration / self.warmup
        return rate * (self.warmup_factor * (1 - share) + share)


def _at_least(settings: object, names: Sequence[str], least: int, problems: list[str]) -> None:
    problems += [
        f"{name} must be at least {least}, got {value}"
        for name in names
        if not (value := getattr(settings, name)) >= least
    ]


def _one_of(name: str, value: str, options: Sequence[str], problems: list[str]) -> None:
    if value not in options:
        problems.append(
            f"{name} must be one of {', '.join(options)}, got {value!r}{nearest_hint(value, options)}"
        )
