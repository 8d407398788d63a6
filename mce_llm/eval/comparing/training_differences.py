"""How the trainings behind compared models differ: what a reader must know before the verdict.

A difference in accuracy is one of the methods only where the trainings differ in the method (the settings of the loss)
and the seed, and in nothing else. What is recorded is in `training_records`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mce_llm.eval.comparing.evaluations import EvaluationPair, SavedEvaluation
from mce_llm.eval.comparing.labels import run_labels
from mce_llm.eval.comparing.notes import Note
from mce_llm.eval.comparing.training_records import (
    TrainingRecord,
    read_record,
    why_no_record,
)
from mce_llm.running.messages import counted

_LONGEST = 60


@dataclass(frozen=True)
class TrainingSetting:
    """A setting in which the trainings differ.

    Attributes:
        name: Of the setting.
        kind: method (the loss), seed, or other: what should be the same.
        values: Of each run that has a record, in their order, as text.
    """

    name: str
    kind: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class TrainingOverview:
    """What is known of the trainings behind the runs of a comparison.

    Attributes:
        runs: Labels of the runs whose training has a record.
        settings: In what these differ: method first, then the seed, then what should be the same.
        unknown: Label → why nothing is known, of the others.
    """

    runs: tuple[str, ...]
    settings: tuple[TrainingSetting, ...]
    unknown: dict[str, str]

    @property
    def others(self) -> tuple[TrainingSetting, ...]:
        """The differences that are neither method nor seed."""
        return tuple(setting for setting in self.settings if setting.kind == "other")

    @property
    def missing(self) -> str | None:
        """What is not known of the trainings, and why, in words; None where all left a record."""
        if not self.unknown:
            return None
        told = "; ".join(f"{label}: {why}" for label, why in self.unknown.items())
        return (
            f"no record of {counted(len(self.unknown), 'training')}, so whether "
            f"{'it differs' if len(self.unknown) == 1 else 'they differ'} in more than the method and the seed is not known ({told})"
        )


def training_overview(runs: Sequence[SavedEvaluation]) -> TrainingOverview:
    """Put the records of all trainings side by side.

    Args:
        runs: Evaluations of the models that were trained.
    """
    labels = run_labels(runs)
    found = [(label, record) for label, run in zip(labels, runs, strict=True) if (record := read_record(run))]
    unknown = {label: why for label, run in zip(labels, runs, strict=True) if (why := why_no_record(run))}
    records = [record for _, record in found]
    return TrainingOverview(tuple(label for label, _ in found), tuple(_differing(records)), unknown)


def training_notes(
    pairs: Sequence[EvaluationPair], overview: TrainingOverview, sides: tuple[str, str]
) -> Iterator[Note]:
    """What the records say against the comparison, in words.

    Args:
        pairs: (A, B) of each seed.
        overview: Of the same.
        sides: What A and B are called.
    """
    if overview.others:
        told = "; ".join(_told(setting, overview.runs) for setting in overview.others)
        yield Note(
            "warning",
            f"the trainings differ in more than the method and the seed ({told}): the difference may be one of the training",
        )
    records = [(read_record(a), read_record(b)) for a, b in pairs]
    if any(a and b and a.method == b.method for a, b in records):
        yield Note(
            "warning",
            f"{sides[0]} and {sides[1]} were trained with the same settings of the loss: this is no comparison of two "
            "methods",
        )
    for number, (a, b) in enumerate(records, start=1):
        if a and b and a.seed != b.seed:
            pair = f"pair {number}: " if len(pairs) > 1 else ""
            yield Note(
                "warning" if len(pairs) > 1 else "note",
                f"{pair}{sides[0]} was trained with seed {a.seed}, {sides[1]} with seed {b.seed}",
            )
    for side, name in enumerate(sides):
        known = [pair[side] for pair in records if pair[side] is not None]
        if len({str(record and record.method) for record in known}) > 1:
            yield Note("warning", f"the runs of {name} were trained with different settings of the loss")
        seeds = [record.seed for record in known if record]
        if len(set(seeds)) < len(seeds):
            yield Note(
                "warning",
                f"runs of {name} have the same training seed ({', '.join(map(str, seeds))}): the interval over seeds does "
                "not cover other seeds",
            )


def _differing(records: Sequence[TrainingRecord]) -> Iterator[TrainingSetting]:
    """The settings in which any two of the trainings differ."""
    if len(records) < 2:
        return
    first = records[0]
    yield from _row("loss", "method", [record.method_text for record in records])
    # Of one loss; which loss it is stands above.
    alike = [[r.method for r in records if r.loss == loss] for loss in {r.loss for r in records} - {"ce"}]
    differing = {
        name
        for methods in alike
        for name in {name for method in methods for name in method}
        if any(method.get(name) != methods[0].get(name) for method in methods)
    }
    every = dict.fromkeys(name for record in records if not record.is_plain for name in record.method)
    for name in filter(differing.__contains__, every):
        values = ["–" if record.is_plain else record.method.get(name, "–") for record in records]
        yield TrainingSetting(name, "method", tuple(map(_shown, values)))
    yield from _row("seed", "seed", [record.seed for record in records])
    yield from _row("data_seed", "seed", [record.known.get("data_seed") for record in records])
    found = [first.differences(record) for record in records]
    for name in dict.fromkeys(name for difference in found for name in difference):
        own = next(difference[name][0] for difference in found if name in difference)
        values = [difference[name][1] if name in difference else own for difference in found]
        yield TrainingSetting(name, "other", tuple(map(_shown, values)))


def _row(name: str, kind: str, values: Sequence[Any]) -> Iterator[TrainingSetting]:
    if any(value != values[0] for value in values):
        yield TrainingSetting(name, kind, tuple(map(_shown, values)))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[1 - _LONGEST // 2 :]}"


def _told(setting: TrainingSetting, labels: Sequence[str]) -> str:
    """`learning_rate: 2e-05 in ce-1, ce-2, 1e-05 in mce-1`."""
    where: dict[str, list[str]] = {}
    for label, value in zip(labels, setting.values, strict=True):
        where.setdefault(value, []).append(label)
    return f"{setting.name}: " + ", ".join(f"{value} in {', '.join(runs)}" for value, runs in where.items())
