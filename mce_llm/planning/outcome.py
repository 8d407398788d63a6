"""What a memory plan consists of: the lines of each engine, whether they fit, and what would help where they do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mce_llm.planning.engines import Phase, Term
from mce_llm.planning.shapes import ModelShape, TrainingShape

# Of a card or of the host: what the arithmetic is off by. A plan that leaves less is tight, and may not fit.
TIGHT = 0.05
"""Share of a card that has to be left for a plan to fit, and not tightly."""
_MOMENTS: tuple[Phase, ...] = ("forward", "backward", "step")

Verdict = Literal["fits", "tight", "too large"]
"""How a plan compares with what there is."""


@dataclass(frozen=True)
class EnginePlan:
    """The memory of one device under one engine.

    Attributes:
        engine: Its name.
        terms: Every line of the arithmetic.
        capacity: Bytes of a device; None where it is not known.
        refusal: Why this run cannot be launched with it, or None.
        largest_micro_batch: Rows that fit, and are not tight unless one alone is; 0 where not even one fits, None without
            a capacity.
        host_capacity: Bytes of host memory over all machines; None where it is not known.
        stock_peak: Bytes of one device where the loss were transformers' own cross-entropy, with logits in full.
    """

    engine: str
    terms: tuple[Term, ...]
    capacity: float | None
    refusal: str | None = None
    largest_micro_batch: int | None = None
    host_capacity: float | None = None
    stock_peak: float | None = None

    def sum_of(self, phase: Phase) -> float:
        """Bytes of the terms of one phase."""
        return sum(term.bytes for term in self.terms if term.phase == phase)

    @property
    def moment(self) -> Phase:
        """When the peak is."""
        return max(_MOMENTS, key=self.sum_of)

    @property
    def reserve(self) -> float:
        """Bytes for what no tensor shows."""
        return sum(term.bytes for term in self.terms if term.name == "reserve")

    @cached_property
    def peak(self) -> float:
        """Bytes of one device at the worst moment, the reserve included."""
        return self.sum_of("always") + self.sum_of(self.moment)

    @property
    def host(self) -> float:
        """Bytes of host memory beside that of the processes themselves, over all machines."""
        return self.sum_of("host")

    @property
    def verdict(self) -> Verdict | None:
        """Whether the peak fits, and what the host needs; tight where less than 5 % is left. None without a capacity."""
        if self.capacity is None:
            return None
        shares = [self.peak / self.capacity]
        if self.host_capacity is not None:
            shares.append(self.host / self.host_capacity)
        if self.refusal is not None or max(shares) > 1:
            return "too large"
        return "tight" if max(shares) > 1 - TIGHT else "fits"

    @property
    def fits(self) -> bool | None:
        """Whether it fits, be it tightly; None without a capacity."""
        return None if self.verdict is None else self.verdict != "too large"


@dataclass(frozen=True)
class Remedy:
    """A change that would make the run smaller.

    Attributes:
        change: What to set.
        cost: What that costs.
        engine: The engine that is best with it.
        peak: Bytes of a device then.
        fits: Whether that is enough.
        tight: It is, with less than 5 % to spare.
    """

    change: str
    cost: str
    engine: str
    peak: float
    fits: bool
    tight: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs.

    Attributes:
        model: The model.
        training: The run as it was given.
        devices: GPUs.
        capacity: Bytes of each; None where it is not known.
        engines: One plan an engine.
        recommended: The fastest engine that fits, by name, before one that is tight; offload after those. None where
            none fits.
        remedies: What to change, the cheapest first; empty where an engine fits without offload, and is not tight.
    """

    model: ModelShape
    training: TrainingShape
    devices: int
    capacity: float | None
    engines: tuple[EnginePlan, ...]
    recommended: str | None
    remedies: tuple[Remedy, ...]

    def of(self, engine: str) -> EnginePlan:
        """The plan of one engine."""
        return next(plan for plan in self.engines if plan.engine == engine)
