"""Reading back what likelihood evaluations left behind; neither torch nor datasets is needed.

`evaluation` writes these files. The summary is pooled anew from the lines.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.items import Item
from mce_llm.eval.likelihood.lines import FIELDS, contradicting_sums, is_amount
from mce_llm.eval.likelihood.summary import TASK, pooled_from
from mce_llm.eval.saved_folders import (
    SavedFolder,
    check_fields,
    contradiction_of,
    other_data,
    read_files,
    unlike_each_other,
)
from mce_llm.eval.saved_lines import numbered_lines, refuse_problems

COMPARABLE_LIKELIHOODS = ("task", "prompt", "data", "scoring", "dtype")
"""What two evaluations must share for their difference to be one of the models: keys of `SavedLikelihood.identity`."""
_HASHED = ("prompt", "data", "scoring", "model")
_ROUNDING = 1e-9  # relative, of sums that were added up in another order


@dataclass(frozen=True)
class SavedLikelihood(SavedFolder):
    """One finished likelihood evaluation.

    Attributes:
        path: Its folder.
        summary: `summary.json`, with what is pooled from the items pooled from those here.
        config: `config.json`.
        items: `items.jsonl`, one of each question in their order; see `likelihood.items.item_of`.
        remarks: What a reader must know of the files: figures and texts that said something else, in words.
    """

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SavedLikelihood:
        """Read a folder that a likelihood evaluation wrote.

        Args:
            path: The folder of `summary.json`.

        Returns:
            The evaluation.

        Raises:
            EvaluationError: There is no finished evaluation of likelihoods, or its files contradict each other.
        """
        folder, summary, config = read_files(path)
        check_fields(folder, summary, config, {"n": int, "tokens_per_second": (int, float)})
        if summary["task"] != TASK:
            raise EvaluationError(
                f"{folder / 'summary.json'}: task must be {TASK}, got {summary['task']!r}: it is an evaluation of answers"
            )
        items = _read_items(folder / "items.jsonl")
        contradiction = _contradiction(summary, config, items)
        if contradiction is not None:
            raise unlike_each_other(folder, contradiction)
        pooled = json.loads(json.dumps(pooled_from(items)))
        remarks = (*_otherwise(summary, pooled), *other_data(items, config))
        return cls(folder, {**summary, **pooled}, config, items, remarks)

    @property
    def first_samples(self) -> list[Item]:
        """The one line of each question, in their order; the name is that of `SavedRun`, which may have several."""
        return list(self.items)


def _read_items(path: Path) -> tuple[Item, ...]:
    problems: list[str] = []
    items = []
    for number, item in numbered_lines(path, FIELDS, problems):
        if contradicts := contradicting_sums(item):
            problems.append(f"line {number}: {contradicts}")
        items.append(item)
    refuse_problems(path, "the likelihoods of an evaluation", problems)
    return tuple(items)


def _contradiction(
    summary: Mapping[str, Any], config: Mapping[str, Any], items: Sequence[Item]
) -> str | None:
    """In what the files of an evaluation say otherwise, in words; None where they agree."""
    if summary["n"] != len(items):
        return f"summary.json counts {summary['n']} questions, items.jsonl has {len(items)} lines"
    for number, item in enumerate(items):
        if item["index"] != number:
            return f"items.jsonl, line {number + 1}, must be index {number}, and is index {item['index']}"
    return contradiction_of(summary, config, _HASHED)


def _otherwise(summary: Mapping[str, Any], pooled: Mapping[str, Any]) -> Iterator[str]:
    """Figures of summary.json that are not those of the items, in words."""
    written = summary.get("groups")
    for name, group in pooled["groups"].items():
        before = written.get(name) if isinstance(written, Mapping) else None
        told = before.get("nats_per_token") if isinstance(before, Mapping) else None
        if not _same(told, group["nats_per_token"]):
            yield (
                f"summary.json says {told!r} nats per token of {name}; the items give {group['nats_per_token']!r}, which is used"
            )
    errors = summary.get("calibration_error")
    for name, value in pooled["calibration_error"].items():
        told = errors.get(name) if isinstance(errors, Mapping) else None
        if not _same(told, value):
            yield f"summary.json says a calibration error of {told!r} for {name}; the items give {value!r}, which is used"


def _same(before: Any, now: float | None) -> bool:
    if before is None or now is None:
        return before is now
    return is_amount(before) and math.isclose(before, now, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
