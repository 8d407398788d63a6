"""Which evaluations of a report are on the same data: a section each, by the hash of the data and their title."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from mce_llm.eval.comparing.pairing import Run
from mce_llm.eval.items import TASK_TITLES
from mce_llm.eval.reporting.collect import Source

_HASH = 6  # digits that tell two data sets of one title apart


@dataclass(frozen=True)
class DataSet(Generic[Run]):
    """Evaluations on one data set.

    Attributes:
        key: Its name in links and files.
        title: What people call it.
        task: How its answers are judged.
        runs: Place of the source → its evaluation, in the order of the sources.
    """

    key: str
    title: str
    task: str
    runs: dict[int, Run]


def data_sets(sources: Sequence[Source], runs_of: Callable[[Source], Sequence[Run]]) -> list[DataSet[Run]]:
    """Find the data sets of a report, in the order of their first evaluations.

    Evaluations with the same hash of the data are on one data set, whatever its file is called. Those of one title and
    other hashes are shown together where each folder has only one of them (and the page says why they cannot be
    compared), else apart.

    Args:
        sources: What `read_sources` found.
        runs_of: Those of one kind of a source.
    """
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for place, source in enumerate(sources):
        for run in runs_of(source):
            groups.setdefault((run.identity["task"], run.identity["data"]), {})[place] = run
    merged: list[dict[int, Run]] = []
    for runs in groups.values():
        alike = [
            other for other in merged if _named(other) == _named(runs) and not other.keys() & runs.keys()
        ]
        if alike:
            alike[0].update(runs)
        else:
            merged.append(dict(runs))
    counts = Counter(map(_named, merged))
    tasks = Counter(title for _, title in counts)
    taken, found = Counter[str](), []
    for runs in merged:
        task, title = _named(runs)
        first = next(iter(runs.values()))
        if counts[task, title] > 1:
            title = f"{title} (data {str(first.identity['data'])[:_HASH]})"
        elif tasks[title] > 1:
            title = f"{title} (judged as {TASK_TITLES.get(task, task)})"
        key = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-") or "data"
        taken[key] += 1
        key = key if taken[key] == 1 else f"{key}-{taken[key]}"
        found.append(DataSet(key, title, task, dict(sorted(runs.items()))))
    return found


def _named(runs: dict[int, Run]) -> tuple[str, str]:
    first = next(iter(runs.values()))
    return first.identity["task"], first.data_title
