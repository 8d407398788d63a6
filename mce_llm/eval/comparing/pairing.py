"""Which run is held against which: arms and seeds as the trainings recorded them, never by the order of a shell alone.

Two runs are A and B as they are given. More are put into arms by the method that their trainings recorded, and paired
by the recorded seed; where records are missing or do not fit, the caller is asked to say it (`Groups`). A baseline may
have several arms held against it.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mce_llm.eval.comparing.evaluations import SavedEvaluation
from mce_llm.eval.comparing.labels import run_labels
from mce_llm.eval.comparing.training_records import TrainingRecord, read_record, why_no_record
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.saved_runs import SavedRun
from mce_llm.running.messages import counted

RunPair = tuple[SavedRun, SavedRun]
Run = TypeVar("Run", bound=SavedEvaluation)


@dataclass(frozen=True)
class Arm(Generic[Run]):
    """Runs of one method, a training seed each.

    Attributes:
        name: What people call it; None where nobody said.
        runs: In the order of the pairs.
        method: What their trainings recorded, in words; None where that was not asked.
    """

    name: str | None
    runs: tuple[Run, ...]
    method: str | None = None


@dataclass(frozen=True)
class Arrangement(Generic[Run]):
    """A baseline and what is held against it; all arms have as many runs, and those of one place are a pair.

    Attributes:
        baseline: A.
        arms: B, and C, D, … where there are several.
        how: By what runs were paired, in words.
        doubts: What speaks against it, where it was asked for all the same.
    """

    baseline: Arm[Run]
    arms: tuple[Arm[Run], ...]
    how: str
    doubts: tuple[str, ...] = ()

    def pairs(self, arm: Arm[Run]) -> list[tuple[Run, Run]]:
        """(A, B) of each seed for one of the arms."""
        return list(zip(self.baseline.runs, arm.runs, strict=True))

    @property
    def runs(self) -> list[Run]:
        """All runs, arm by arm."""
        return [run for arm in (self.baseline, *self.arms) for run in arm.runs]


def arrange_runs(runs: Sequence[Run], command: str = "mce-llm compare") -> Arrangement[Run]:
    """Arrange runs of which nothing is said but their order.

    Args:
        runs: Two: A and B. More: of any order; the first is one of the baseline, the rest follows from the records.
        command: What a message tells to type in its place.

    Returns:
        The arrangement.

    Raises:
        EvaluationError: There are fewer than two runs, or records do not tell which belongs to which; the message says
            what each run is, and what to type.
    """
    if len(runs) < 2:
        raise EvaluationError(
            f"evaluations are compared in pairs, a baseline and what is held against it, got {counted(len(runs), 'folder')}"
        )
    if len(runs) == 2:
        return Arrangement(Arm(None, (runs[0],)), (Arm(None, (runs[1],)),), "as given")
    _check_once(runs)
    records = [read_record(run) for run in runs]
    if any(record is None for record in records):
        _ask(runs, records, "trainings without a record do not say which runs belong together", command)
    known = [record for record in records if record is not None]
    groups = _by_method(known)
    if len(groups) < 2:
        _ask(runs, records, "all of them were trained with the same settings but for the seed", command)
    arms = [
        Arm(None, tuple(runs[place] for place in places), known[places[0]].method_text) for places in groups
    ]
    seeds = [[known[place].seed for place in places] for places in groups]
    if len(groups[0]) > 1 or any(len(places) > 1 for places in groups):
        for arm, of_arm in zip(arms, seeds, strict=True):
            if len(set(of_arm)) < len(of_arm):
                _ask(runs, records, f"{arm.method} has one seed twice", command)
        if any(set(of_arm) != set(seeds[0]) for of_arm in seeds):
            _ask(runs, records, "not every seed is there in every arm", command)
        arms = [_by_seed(arm, of_arm, seeds[0]) for arm, of_arm in zip(arms, seeds, strict=True)]
    return Arrangement(arms[0], tuple(arms[1:]), "by the methods and seeds that the trainings recorded")


def arrange_groups(
    baseline: Sequence[Run],
    arms: Sequence[tuple[str | None, Sequence[Run]]],
    *,
    allow_differences: bool = False,
) -> Arrangement[Run]:
    """Arrange runs of which it is said which arm each belongs to.

    Args:
        baseline: Runs of A.
        arms: (name, runs) of each arm that is held against it, as many runs as the baseline has.
        allow_differences: Accept arms whose recorded methods or seeds contradict that, with a doubt in the outcome.

    Returns:
        The arrangement; runs are paired by recorded seed where every run has one of its own, else by their order.

    Raises:
        EvaluationError: There is no arm, or arms differ in size, hold runs of different methods, or have other seeds.
    """
    if not baseline or not arms:
        missing = "--baseline" if not baseline else "--arm"
        raise EvaluationError(
            f"a comparison needs a baseline and an arm that is held against it; {missing} is missing"
        )
    given = [Arm(None, tuple(baseline)), *(Arm(name, tuple(runs)) for name, runs in arms)]
    runs = [run for arm in given for run in arm.runs]
    _check_once(runs)
    sizes = [len(arm.runs) for arm in given]
    if len(set(sizes)) > 1:
        raise EvaluationError(
            f"the baseline has {counted(sizes[0], 'run')} and the arms have {', '.join(map(str, sizes[1:]))}; each needs "
            "one for each training seed"
        )
    labels = dict(zip(map(id, runs), run_labels(runs), strict=True))
    records = {id(run): read_record(run) for run in runs}
    doubts: list[str] = []

    def doubt(text: str) -> None:
        if not allow_differences:
            raise EvaluationError(
                f"{text}. Give other runs, or --allow-differences to compare them all the same"
            )
        doubts.append(text)

    for arm in given:
        methods = {
            _frozen(record.method): record.method_text for run in arm.runs if (record := records[id(run)])
        }
        if len(methods) > 1:
            told = ", ".join(
                f"{labels[id(run)]} {record.method_text}" for run in arm.runs if (record := records[id(run)])
            )
            doubt(f"one arm holds runs of different methods, as their trainings recorded them: {told}")
    how = "by position: the first of the baseline with the first of each arm, and so on"
    unknown = [labels[id(run)] for run in runs if records[id(run)] is None]
    if sizes[0] == 1:
        how = "as given"
    elif unknown:
        how += f"; there is no record of the training of {', '.join(unknown)}, so seeds cannot be looked up"
    else:
        seeds = [[record.seed for run in arm.runs if (record := records[id(run)])] for arm in given]
        if any(len(set(of_arm)) < len(of_arm) for of_arm in seeds):
            twice = next(n for n, of_arm in enumerate(seeds) if len(set(of_arm)) < len(of_arm))
            doubt(
                "one arm has runs of the same training seed, which is not another seed: "
                + ", ".join(
                    f"{labels[id(run)]} seed {seed}"
                    for run, seed in zip(given[twice].runs, seeds[twice], strict=True)
                )
            )
        elif any(set(of_arm) != set(seeds[0]) for of_arm in seeds):
            told = "; ".join(", ".join(map(str, of_arm)) for of_arm in seeds)
            doubt(f"the arms were trained with different seeds ({told}), so some have no partner")
        else:
            given = [_by_seed(arm, of_arm, seeds[0]) for arm, of_arm in zip(given, seeds, strict=True)]
            how = "by the seeds that the trainings recorded"
    return Arrangement(given[0], tuple(given[1:]), how, tuple(doubts))


def _check_once(runs: Sequence[SavedEvaluation]) -> None:
    for path, count in Counter(run.path.resolve() for run in runs).items():
        if count > 1:
            raise EvaluationError(
                f"{path} is given {count} times; a comparison needs a run of its own in each place"
            )


def _by_method(records: Sequence[TrainingRecord]) -> list[list[int]]:
    """Places of the runs of each arm: by the loss, or where that is the same everywhere, by all other settings."""
    keys: Sequence[Callable[[TrainingRecord], Any]] = (
        lambda record: record.method,
        lambda record: record.others,
    )
    groups: dict[str, list[int]] = {}
    for key in keys:
        groups = {}
        for place, record in enumerate(records):
            groups.setdefault(_frozen(key(record)), []).append(place)
        if len(groups) > 1:
            break
    return list(groups.values())


def _by_seed(arm: Arm[Run], seeds: Sequence[Any], order: Sequence[Any]) -> Arm[Run]:
    runs = dict(zip(seeds, arm.runs, strict=True))
    return Arm(arm.name, tuple(runs[seed] for seed in order), arm.method)


def _frozen(settings: Any) -> str:
    return repr(sorted(settings.items(), key=lambda item: str(item[0])))


def _ask(
    runs: Sequence[SavedEvaluation], records: Sequence[TrainingRecord | None], why: str, command: str
) -> None:
    """Refuse to guess: say what each run is, and how to say which belongs where."""
    labels = run_labels(runs)
    told = "; ".join(
        f"{label}: {f'{record.method_text}, seed {record.seed}' if record else why_no_record(run)}"
        for label, run, record in zip(labels, runs, records, strict=True)
    )
    message = (
        f"it is not clear which of {len(runs)} runs are held against which: {why} ({told}). Say it: {command} --baseline A "
        "A2 … --arm B B2 … [--arm C C2 …], with the same seed in the same place of each"
    )
    if len(runs) % 2 == 0:
        first, second = (shlex.join(str(run.path) for run in runs[start::2]) for start in (0, 1))
        message += (
            f"; if the order given is A B A2 B2 …, that is: {command} --baseline {first} --arm {second}"
        )
    raise EvaluationError(message)
