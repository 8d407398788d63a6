"""What a study is: arms, training seeds, evaluations and the baseline, as plain values.

How a file is read into these is in `reading`; what the arms' recipes say in full is in `arms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUTPUT, STUDY = "${output}", "${study}"
"""What stands in a study file for its output folder, and for the folder that the file is in."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: What it is called, in tables and folders.
        recipe: The YAML file of its recipe.
        settings: What is changed in the recipe for this arm alone.
        seeds: Its training seeds, in the order of the study's.
        differs_in: Settings in which its recipe may differ from the baseline's beside `settings`.
    """

    name: str
    recipe: Path
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    differs_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """One measurement of every trained model.

    Attributes:
        name: What it is called, in tables and folders.
        script: A key of `evaluators.EVALUATORS`.
        settings: Options of the script.
    """

    name: str
    script: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Preparation:
    """A command that makes files before the first run.

    Attributes:
        command: Its words.
        makes: A file that it leaves.
        given: Its words as the study file has them, the same wherever file and output folder are moved to.
    """

    command: tuple[str, ...]
    makes: Path
    given: tuple[str, ...]


@dataclass(frozen=True)
class Primary:
    """The measure that the study is about.

    Attributes:
        evaluation: The evaluation that gives it.
        measure: Its name.
        smallest_difference: The smallest difference of interest, in the measure's unit; None where none was named.
    """

    evaluation: str
    measure: str
    smallest_difference: float | None = None


@dataclass(frozen=True)
class Contrast:
    """Two arms that are compared by the primary measure, neither of them the baseline.

    Attributes:
        arm: The one.
        against: The one in the place of the baseline.
    """

    arm: str
    against: str


@dataclass(frozen=True)
class Study:
    """Everything that a study file says, with what the command line changed.

    Attributes:
        name: What the study is called.
        file: The study file.
        output: Where everything goes.
        settings: What is changed in every arm's recipe.
        arms: The baseline first, then the others in the order of the file.
        seeds: All training seeds, in the order in which they are run.
        evaluations: In the order in which they are run.
        primary: The measure that the study is about.
        launch: `training` and `evaluation`: options of `accelerate launch`.
        prepare: Commands that run before everything else.
        keep_weights: What stays of a run's weights when its results are there: True for all, `model` for those that it was
            trained to, without checkpoints, False for nothing.
        confidence: Coverage of the intervals.
        contrasts: Arms that are compared with each other, too.
    """

    name: str
    file: Path
    output: Path
    settings: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    evaluations: tuple[Evaluation, ...]
    primary: Primary
    launch: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prepare: tuple[Preparation, ...] = ()
    keep_weights: bool | str = True
    confidence: float = 0.95
    contrasts: tuple[Contrast, ...] = ()

    @property
    def baseline(self) -> Arm:
        """The arm that the others are held against."""
        return self.arms[0]

    def arm(self, name: str) -> Arm:
        """Return the arm of a name that there is."""
        return next(arm for arm in self.arms if arm.name == name)

    def settings_of(self, arm: Arm) -> dict[str, Any]:
        """What is changed in an arm's recipe, by the study and by the arm."""
        return {**self.settings, **arm.settings}

    def folder(self, arm: str, seed: int) -> Path:
        """The `output_dir` of a run; its evaluations lie below it."""
        return self.output / f"seed{seed}" / arm

    def runs(self) -> list[tuple[Arm, int]]:
        """All runs in their order: of each seed in turn every arm, the baseline first.

        So an interruption leaves complete seeds; an arm with fewer seeds drops out after its last.
        """
        return [(arm, seed) for seed in self.seeds for arm in self.arms if seed in arm.seeds]
