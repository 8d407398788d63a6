"""Reading `items.jsonl` back: every field checked by line, and every verdict recomputed from the texts.

A line may come from an earlier version, whose rules were others, or from an editor. What counts is what this version
judges of the response and the reference; where the line says otherwise, that is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.items import Generation, Item
from mce_llm.eval.judging.references import GoldAnswerError
from mce_llm.eval.saved_lines import ANSWER_FIELDS, numbered_lines, refuse_problems
from mce_llm.eval.tasks import GSM8K, MATH, Task

TASKS = {task.name: task for task in (GSM8K, MATH)}


@dataclass(frozen=True)
class Rejudged:
    """A line whose written verdict is not that of this version.

    Attributes:
        index: Of the question, from 0.
        sample: Of the answer.
        written: The verdict in the file.
        judged: The one that counts.
        predicted: The answer that was found now.
        gold: The reference.
    """

    index: int
    sample: int
    written: bool
    judged: bool
    predicted: str | None
    gold: str


@dataclass(frozen=True)
class SavedItems:
    """The lines of `items.jsonl` with the verdicts of this version.

    Attributes:
        items: In the order of the file.
        rejudged: Those whose verdict was another.
        reread: How many further ones have the same verdict and another answer, or form of it.
    """

    items: tuple[Item, ...]
    rejudged: tuple[Rejudged, ...]
    reread: int


def task_of(name: Any, where: Path) -> Task:
    """The task that an evaluation says it is of.

    Args:
        name: `task` of its summary.
        where: The file that says so, for messages.

    Raises:
        EvaluationError: There is no such task, or what it judges with is not installed.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise EvaluationError(f"{where}: task must be one of {', '.join(TASKS)}, got {name!r}")
    task = TASKS[name]
    task.check_ready()
    return task


def read_items(path: Path, task: Task, thinking_tags: Sequence[str] = ()) -> SavedItems:
    """Read the answers of an evaluation and judge them.

    Args:
        path: Its `items.jsonl`.
        task: What was asked.
        thinking_tags: The tags around thoughts that the evaluation was told of, beside those that are known.

    Returns:
        The items.

    Raises:
        EvaluationError: The file cannot be read, or lines of it are no answers; the message names them.
    """
    items, rejudged, reread = [], [], 0
    problems: list[str] = []
    judged: dict[tuple[str, str], Item] = {}
    for number, written in numbered_lines(path, ANSWER_FIELDS, problems):
        texts = written["gold"], written["response"]
        if texts not in judged:
            try:
                judged[texts] = _judge(task, written, thinking_tags)
            except GoldAnswerError as error:
                problems.append(f"line {number}: gold cannot be judged by: {error}")
                continue
        found = {name: judged[texts][name] for name in ("predicted", "found_by", "correct")}
        if found["correct"] != written["correct"]:
            place = written["index"], written["sample"]
            verdicts = written["correct"], found["correct"]
            rejudged.append(Rejudged(*place, *verdicts, found["predicted"], written["gold"]))
        elif any(found[name] != written[name] for name in found):
            reread += 1
        items.append({**written, **found})
    refuse_problems(path, "the answers of an evaluation", problems)
    return SavedItems(tuple(items), tuple(rejudged), reread)


def _judge(task: Task, written: Item, thinking_tags: Sequence[str]) -> Item:
    generation = Generation(0, 0, written["response"], written["new_tokens"], written["finished"])
    row = {"question": written["question"], "answer": written["gold"]}
    return task.judge(row, generation, thinking_tags=thinking_tags)
