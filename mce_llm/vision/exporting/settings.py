"""What an export or an import can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from mce_llm.running.messages import nearest_hint
from mce_llm.running.settings import mapping_of, names_of, raise_all
from mce_llm.vision.data.settings import statistics_problems
from mce_llm.vision.data.sources import IMAGENET
from mce_llm.vision.exporting.formats import ALL, FORMATS
from mce_llm.vision.models.backbones import STEMS

_EXPORT_ONLY = ("format", "license")
_IMPORT_ONLY = ("backbone", "stem", "backbone_kwargs", "prefix", "image_size", "mean", "std", "method")


@dataclass
class ExportSettings:
    """The encoder of a run to other libraries (`encoder`), or published weights to a folder like a run's (`import_from`)."""

    output_dir: str = field(
        metadata={"help": "Each format gets a folder of its name in it; an import is written to itself."}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "Folder of the pretraining run whose encoder to export."}
    )
    format: str = field(
        default=ALL,
        metadata={"help": f"{', '.join(FORMATS)}, several with commas, or all that have a place for it."},
    )
    use_teacher: bool | None = field(
        default=None,
        metadata={
            "help": "Take the averaged teacher, or the student; when importing, the averaged encoder of the file. By default the "
            "student, but of a file with student and teacher (DINO and its family) the teacher, whose results are published."
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace what was exported or imported there before."}
    )
    license: str | None = field(
        default=None, metadata={"help": "SPDX identifier for the model card, such as apache-2.0."}
    )
    import_from: str | None = field(
        default=None, metadata={"help": "File of weights to import (.pth, .pth.tar, .pt, .safetensors)."}
    )
    backbone: str = field(
        default="resnet50",
        metadata={"help": "Which encoder they are of: a model of torchvision, or timm/NAME."},
    )
    stem: str = field(default="imagenet", metadata={"help": "Its stem: imagenet, or cifar."})
    backbone_kwargs: str | None = field(
        default=None, metadata={"help": "Mapping of further arguments for the library that builds it."}
    )
    prefix: str | None = field(
        default=None,
        metadata={
            "help": "What stands before its names in the file; needed where it holds several encoders."
        },
    )
    image_size: int = field(default=224, metadata={"help": "Side of the images it was trained on."})
    mean: list[float] = field(
        default_factory=lambda: list(IMAGENET.mean),
        metadata={"help": "Mean that its images were normalised with; ImageNet's by default."},
    )
    std: list[float] = field(
        default_factory=lambda: list(IMAGENET.std), metadata={"help": "Standard deviation, likewise."}
    )
    method: str | None = field(default=None, metadata={"help": "How it was trained, for the record."})

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Some cannot be used; the message lists them all.
        """
        problems = []
        if (self.encoder is None) == (self.import_from is None):
            problems.append(
                "give either encoder, the folder of a run to export, or import_from, a file of weights to import"
            )
        if not self.output_dir:
            problems.append("output_dir must name a folder")
        names = names_of(self.format)
        problems += [
            f"unknown format {name!r}{nearest_hint(name, (*FORMATS, ALL))}; there are {', '.join(FORMATS)} and {ALL}"
            for name in names
            if name not in (*FORMATS, ALL)
        ]
        if not names:
            problems.append(f"format is empty; there are {', '.join(FORMATS)} and {ALL}")
        if ALL in names and len(names) > 1:
            problems.append(f"format {ALL} needs no other beside it, got {self.format!r}")
        if self.license is not None and not re.fullmatch(r"[A-Za-z0-9.+-]+", self.license):
            problems.append(f"license must be an SPDX identifier such as apache-2.0, got {self.license!r}")
        if self.stem not in STEMS:
            problems.append(
                f"stem must be imagenet or cifar, got {self.stem!r}{nearest_hint(self.stem, STEMS)}"
            )
        if self.image_size < 8:
            problems.append(f"image_size must be at least 8 pixels, got {self.image_size}")
        problems += statistics_problems(self.mean, self.std)
        mapping_of("backbone_kwargs", self.backbone_kwargs, problems)
        raise_all(problems)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that were asked for."""
        return FORMATS if self.wants_all else tuple(dict.fromkeys(names_of(self.format)))

    @property
    def wants_all(self) -> bool:
        """Whether formats that have no place for the encoder are passed over."""
        return names_of(self.format) == [ALL]

    @property
    def arguments(self) -> dict[str, Any]:
        """`backbone_kwargs` as a mapping."""
        return mapping_of("backbone_kwargs", self.backbone_kwargs, [])


def check_given(settings: ExportSettings, given: dict[str, Any]) -> None:
    """Refuse settings that would do nothing.

    Args:
        settings: As parsed.
        given: Those that were given.

    Raises:
        ConfigurationError: A setting of imports beside `encoder`, or of exports beside `import_from`.
    """
    idle, other = (_IMPORT_ONLY, "import_from") if settings.encoder is not None else (_EXPORT_ONLY, "encoder")
    raise_all([f"{name} goes with {other}, and does nothing here" for name in idle if name in given])
