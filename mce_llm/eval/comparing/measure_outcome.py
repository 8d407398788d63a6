"""What a comparison of a measure has found, as data: tables of `mce-llm compare`, of the report and of studies.

Values and differences are in the measure's own scale: shares (0.031 for 3.1 points), or nats per token. Differences are
arm minus baseline. Nothing is computed here; `measure_comparison` does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mce_llm.eval.comparing.comparison_outcome import Detectable
from mce_llm.eval.comparing.measures import Measure
from mce_llm.eval.intervals import Interval

Seed = Hashable
Values = Mapping[Any, np.ndarray]
"""Training seed → what each question contributes, (n,); the mean is the measure."""

Finding = Literal["better", "worse", "higher", "lower", "not told apart"]
Weight = Literal["matters", "too small to matter", "open"]


@dataclass(frozen=True)
class MeasureValues:
    """A measure of many runs, question by question.

    Attributes:
        measure: Which.
        baseline: Of each training seed.
        arms: Name → the same; an arm may have other seeds, of which those count that the baseline has too.
    """

    measure: Measure
    baseline: Values
    arms: Mapping[str, Values]


@dataclass(frozen=True)
class ArmMeasure:
    """One arm against the baseline, by one measure.

    Attributes:
        name: The arm.
        seeds: Training seeds that both have, in the order of the baseline's.
        left_out: Seeds that one of the two has alone.
        baseline_value: Mean of the baseline over these seeds and all questions.
        value: That of the arm.
        difference: Arm minus baseline.
        interval: For this arm alone.
        interval_method: How it was computed, and over what.
        simultaneous: At 1 − α/m, so that those of all m arms hold together; the same where there is one arm.
        p_value: Of no difference, for this arm alone.
        test: What it is of.
        p_holm: The same after Holm's correction for the arms.
        finding: What the arm is: better, worse; higher, lower where neither way is better; or not told apart. A
            difference counts as found where p_holm ≤ α and the interval alone leaves out 0.
        weight: Against the smallest difference that matters: `matters` where the simultaneous interval lies beyond it,
            `too small to matter` where it lies within ± it, else open; None where none was declared.
        detectable: What could have been found, at α/m.
        seed_differences: Arm minus baseline of each seed.
        seed_sd: Their standard deviation; None with one seed.
        seed_sd_by_chance: What it would be if training had no chance in it beyond single questions; None with one.
        verdict: What may be concluded, in words.
    """

    name: str
    seeds: tuple[Seed, ...]
    left_out: tuple[Seed, ...]
    baseline_value: float
    value: float
    difference: float
    interval: Interval
    interval_method: str
    simultaneous: Interval
    p_value: float
    test: str
    p_holm: float
    finding: Finding
    weight: Weight | None
    detectable: Detectable
    seed_differences: tuple[float, ...]
    seed_sd: float | None
    seed_sd_by_chance: float | None
    verdict: str

    @property
    def found(self) -> bool:
        """Whether a difference was found."""
        return self.finding != "not told apart"


@dataclass(frozen=True)
class MeasureComparison:
    """A baseline and its arms, by one measure.

    Attributes:
        measure: Which.
        baseline: What the baseline is called.
        n: Questions.
        confidence: Of the intervals alone, and of the simultaneous ones together.
        smallest_difference: What matters, as declared; None where it was not.
        primary: Whether this measure was named before as the one that decides; others are described.
        baseline_values: Of each seed of the baseline.
        arms: In the order given.
        verdict: What may be concluded of all arms.
    """

    measure: Measure
    baseline: str
    n: int
    confidence: float
    smallest_difference: float | None
    primary: bool
    baseline_values: Mapping[Seed, float]
    arms: tuple[ArmMeasure, ...]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """The whole comparison as `json.dumps` takes it."""
        return asdict(self)
