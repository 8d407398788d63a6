"""What the pictures of a run can be told, and how the run's own recipe stands behind the command line."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from mce_llm.errors import MceLlmError
from mce_llm.running.folder import RECIPE
from mce_llm.running.messages import cause, nearest_hint
from mce_llm.running.settings import ConfigurationError, names_of, parse_settings, raise_all, setting_words
from mce_llm.running.yaml_text import load_record
from mce_llm.vision.data import AugmentationSettings, DataSettings

KINDS = ("views", "spectrum", "features", "curves")
ALL = "all"


class NothingToDrawError(MceLlmError, ValueError):
    """A picture that cannot be made, as the run has not what it shows; the message says what is missing."""


@dataclass
class PictureSettings:
    """Which pictures, of which run."""

    run: str = field(metadata={"help": "Folder of a pretraining run, finished or not."})
    what: str = field(
        default=ALL, metadata={"help": f"{', '.join(KINDS)}, several with commas, or all that can be made."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Where the PNG files are put; pictures/ in the run's folder by default."},
    )
    images: int = field(default=6, metadata={"help": "Rows of the picture of views."})
    draws: int = field(default=2, metadata={"help": "How often the pair of views of each image is drawn."})
    feature_images: int = field(
        default=2000, metadata={"help": "Points of the picture of features, as many of each class."}
    )
    use_teacher: bool = field(default=False, metadata={"help": "Take the features of the averaged teacher."})
    batch_size: int = field(default=256, metadata={"help": "Images encoded at a time."})
    seed: int = field(
        default=0,
        metadata={"help": "Of views and projections; with the run's, views are those of its first epochs."},
    )
    cpu: bool = field(default=False, metadata={"help": "Encode on the CPU though there is an accelerator."})

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: Some cannot be used; the message lists them all.
        """
        names = names_of(self.what)
        problems = [
            f"there is no picture of {name!r}{nearest_hint(name, (*KINDS, ALL))}; what can be {', '.join(KINDS)} or {ALL}"
            for name in names
            if name not in (*KINDS, ALL)
        ]
        if not names:
            problems.append(f"what is empty; it can be {', '.join(KINDS)} or {ALL}")
        if ALL in names and len(names) > 1:
            problems.append(f"what {ALL} needs no other beside it, got {self.what!r}")
        for name, least in (("images", 1), ("draws", 1), ("feature_images", 3), ("batch_size", 1)):
            if (value := getattr(self, name)) < least:
                problems.append(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.seed < 2**31:
            problems.append(f"seed must be in [0, 2^31), got {self.seed}")
        if not Path(self.run).expanduser().is_dir():
            problems.append(f"run {self.run!r} is no folder; give the output_dir of a pretraining run")
        raise_all(problems)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The pictures that were asked for."""
        return KINDS if self.wants_all else tuple(dict.fromkeys(names_of(self.what)))

    @property
    def wants_all(self) -> bool:
        """Whether pictures that cannot be made are passed over."""
        return names_of(self.what) == [ALL]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run).expanduser()

    @property
    def destination(self) -> Path:
        """Where the pictures are put."""
        return Path(self.output_dir).expanduser() if self.output_dir else self.folder / "pictures"


class Parsed(NamedTuple):
    """Settings of the pictures, and of the run's images.

    Attributes:
        settings: Which pictures.
        data: Which images; None where neither the run nor the command line names any.
        augmentation: How views are drawn.
        given: What was set by name, by the run's recipe or on the command line.
    """

    settings: PictureSettings
    data: DataSettings | None
    augmentation: AugmentationSettings
    given: dict[str, Any]


def parse_pictures(argv: Sequence[str], description: str | None = None) -> Parsed:
    """Read `--config` and the command line; what they leave open about images, views and seed is as in the run's recipe.

    Args:
        argv: The command line, without the program's name.
        description: What `--help` says of the script.

    Returns:
        The settings.

    Raises:
        ConfigurationError: Settings that cannot be used, or a recipe that cannot be read.
    """
    recipe: dict[str, Any] = {}

    def beneath(parsed: Namespace, given: frozenset[str]) -> list[str]:
        recipe.update(_recipe(Path(parsed.run).expanduser()))
        return [
            word
            for name, value in recipe.items()
            if name not in given and value is not None
            for word in setting_words(name, value)
        ]

    groups = (PictureSettings, _RunData, AugmentationSettings)
    (settings, data, augmentation), given = parse_settings(
        groups, argv, description=description, adjust=beneath, comma_lists=("what",)
    )
    return Parsed(settings, None if data.dataset is None else data, augmentation, {**recipe, **given})


@dataclass
class _RunData(DataSettings):
    """Images without a data set, where neither the run nor the command line names one."""

    dataset: str | None = field(  # type: ignore[assignment]
        default=None, metadata=DataSettings.__dataclass_fields__["dataset"].metadata
    )


def _recipe(run: Path) -> dict[str, Any]:
    """What a run's recipe says of images, views and seed."""
    if not (run / RECIPE).is_file():
        return {}
    try:
        content = load_record((run / RECIPE).read_text(encoding="utf-8"), RECIPE)
    except (OSError, ConfigurationError) as error:
        raise ConfigurationError(f"{run / RECIPE} cannot be read: {cause(error)}") from error
    groups = (DataSettings, AugmentationSettings)
    wanted = {"seed", *(item.name for group in groups for item in fields(group))}
    return {name: value for name, value in content.items() if name in wanted}
