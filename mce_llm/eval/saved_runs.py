"""Reading back what evaluations left behind: the runs that are compared and shown in reports.

Nothing is generated here; `results` writes these files, and `saved_items` judges the answers anew.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.items import Item
from mce_llm.eval.judging.reasoning import ThinkingTagsError, check_tags, tags_of
from mce_llm.eval.results import counted_from
from mce_llm.eval.saved_folders import (
    SavedFolder,
    check_fields,
    contradiction_of,
    other_data,
    read_files,
    unlike_each_other,
)
from mce_llm.eval.saved_items import Rejudged, SavedItems, read_items, task_of
from mce_llm.eval.wording import accuracy_text
from mce_llm.running.messages import counted

COMPARABLE = ("task", "prompt", "data", "decoding", "dtype")
"""What two runs must share for their difference to be one of the models: keys of `SavedRun.identity`."""

_HASHED = ("prompt", "data", "decoding", "model")
_MOST_TOLD = 3


@dataclass(frozen=True)
class SavedRun(SavedFolder):
    """One finished evaluation of answers.

    Attributes:
        path: Its folder.
        summary: `summary.json`, with what is counted from the items counted from those here.
        config: `config.json`.
        items: `items.jsonl`, in the order of the questions; with several samples a question, in theirs. Verdicts are
            those of this version.
        remarks: What a reader must know of the files: verdicts and counts that said something else, in words.
    """

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SavedRun:
        """Read a folder that an evaluation wrote, or one that holds such a folder.

        Args:
            path: The folder of `summary.json`.

        Returns:
            The run.

        Raises:
            EvaluationError: There is no finished run, or its files contradict each other.
        """
        folder, summary, config = read_files(path)
        if summary.get("task") == "likelihood":
            raise EvaluationError(
                f"{folder} holds likelihoods of reference solutions, and answers are asked for; give the --output of "
                "eval/gsm8k.py or eval/hendrycks_math.py"
            )
        check_fields(
            folder, summary, config, {"n": int, "num_samples": int, "tokens_per_second": (int, float)}
        )
        task = task_of(summary["task"], folder / "summary.json")
        saved = read_items(folder / "items.jsonl", task, _thinking_tags(folder, config))
        contradiction = _contradiction(summary, config, saved.items)
        if contradiction is not None:
            raise unlike_each_other(folder, contradiction)
        _check_questions(folder / "items.jsonl", saved.items)
        recounted = json.loads(json.dumps(counted_from(task, saved.items)))
        recounted["confidence"] = summary.get("confidence", recounted["confidence"])
        asked = [item for item in saved.items if item["sample"] == 0]
        remarks = (*_rejudged(saved), *_recounted(summary, recounted), *other_data(asked, config))
        return cls(folder, {**summary, **recounted}, config, saved.items, remarks)

    @property
    def first_samples(self) -> list[Item]:
        """The first answer to each question, in the order of the questions."""
        return [item for item in self.items if item["sample"] == 0]

    @property
    def exact_scores(self) -> list[Fraction]:
        """Share of right answers to each question, in the order of the questions."""
        right: dict[int, list[bool]] = defaultdict(list)
        for item in self.items:
            right[item["index"]].append(item["correct"])
        return [Fraction(sum(right[index]), len(right[index])) for index in sorted(right)]

    @property
    def scores(self) -> list[float]:
        """The same as floating-point numbers: 0 or 1 with one sample a question."""
        return [float(score) for score in self.exact_scores]


def _contradiction(
    summary: Mapping[str, Any], config: Mapping[str, Any], items: Sequence[Item]
) -> str | None:
    """In what the files of a run say otherwise, in words; None where they agree."""
    n, samples = summary["n"], summary["num_samples"]
    if n * samples != len(items):
        return f"summary.json counts {n} questions × {samples} samples, items.jsonl has {len(items)} lines"
    for number, item in enumerate(items):
        question, sample = divmod(number, samples)
        if (item["index"], item["sample"]) != (question, sample):
            return (
                f"items.jsonl, line {number + 1}, must be index {question}, sample {sample}, and is index {item['index']}, "
                f"sample {item['sample']}"
            )
    return contradiction_of(summary, config, _HASHED)


def _thinking_tags(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    written = config["settings"].get("thinking_tags")
    try:
        tags = tags_of(written)
        check_tags(tags)
    except (AttributeError, ThinkingTagsError) as error:
        raise EvaluationError(f"{folder / 'config.json'}: thinking_tags cannot be {written!r}") from error
    return tags


def _check_questions(path: Path, items: Sequence[Item]) -> None:
    """All samples of a question have its text and its reference."""
    first = items[0]
    for number, item in enumerate(items, start=1):
        first = item if item["sample"] == 0 else first
        for name in ("question", "gold"):
            if item[name] != first[name]:
                raise EvaluationError(
                    f"{path}, line {number}: {name} is another than in the first sample of this question; restore the "
                    "file, or evaluate the model again with --overwrite true"
                )


def _rejudged(saved: SavedItems) -> Iterator[str]:
    """Verdicts in the file that are not those of this version, in words."""
    reread = f"{counted(saved.reread, 'further answer')} read otherwise with the same verdict" * bool(
        saved.reread
    )
    if not saved.rejudged:
        return
    told = "; ".join(_judgement(item) for item in saved.rejudged[:_MOST_TOLD])
    more = "; …" * (len(saved.rejudged) > _MOST_TOLD)
    yield (
        f"{len(saved.rejudged):,} of {counted(len(saved.items), 'verdict')} in items.jsonl "
        f"{'is' if len(saved.rejudged) == 1 else 'are'} not what this version judges of response and reference "
        f"({told}{more}){f'; {reread}' if reread else ''}. The file is of another version, or was edited; what is judged "
        "now is used"
    )


def _judgement(item: Rejudged) -> str:
    words = {True: "right", False: "wrong"}
    sample = f", sample {item.sample + 1}" if item.sample else ""
    found = "no answer" if item.predicted is None else f"answer {_cut(item.predicted)}"
    return (
        f"no. {item.index + 1}{sample}: written {words[item.written]}, judged {words[item.judged]}, {found} and "
        f"reference {_cut(item.gold)}"
    )


def _cut(text: str, most: int = 24) -> str:
    """The end of a long text: references end with their answer."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _recounted(summary: Mapping[str, Any], recounted: Mapping[str, Any]) -> Iterator[str]:
    """An accuracy in summary.json that is not that of the items, in words."""
    if summary.get("correct") == recounted["correct"] and summary.get("accuracy") == recounted["accuracy"]:
        return
    before, now = summary.get("accuracy"), recounted["accuracy"]
    if before == now:
        yield (
            f"summary.json counts {summary.get('correct')!r} right answers; there are {recounted['correct']}, which is used"
        )
        return
    number = isinstance(before, (int, float)) and not isinstance(before, bool) and 0 <= before <= 1
    written = accuracy_text(float(before or 0)) if number else repr(before)
    yield f"summary.json says an accuracy of {written}; the answers give {accuracy_text(now)}, which is used"
