"""Short names that tell runs apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mce_llm.eval.comparing.evaluations import SavedEvaluation


def run_labels(runs: Sequence[SavedEvaluation]) -> list[str]:
    """Short names that tell runs apart: the ends of their paths, without what says only that it is an evaluation.

    Args:
        runs: The runs.

    Returns:
        One label for each.
    """
    all_parts = [run.name_parts for run in runs]
    while len(runs) > 1 and all(len(parts) > 1 and parts[-1] == all_parts[0][-1] for parts in all_parts):
        all_parts = [parts[:-1] for parts in all_parts]  # the same folder below each, such as eval-8shot
    lengths = [1] * len(runs)

    def labels() -> list[str]:
        return ["/".join(parts[-n:]) for parts, n in zip(all_parts, lengths, strict=True)]

    for _ in range(max(map(len, all_parts), default=0)):
        counts = Counter(labels())
        lengths = [n + (counts[label] > 1) for n, label in zip(lengths, labels(), strict=True)]
    short = labels()
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]
