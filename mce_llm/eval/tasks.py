"""The benchmarks: where their questions come from, and how their answers are judged.

Anything with a `question` and an `answer` can be evaluated as one of these; `evaluation` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets import Dataset

from mce_llm.data import DataError, load_examples
from mce_llm.eval.answers import (
    Answer,
    GoldAnswerError,
    extract_answer,
    gold_expression,
    gold_value,
    is_correct,
)
from mce_llm.eval.engines.decoding import Generation
from mce_llm.eval.items import Item
from mce_llm.eval.judging.expressions import equivalent
from mce_llm.eval.judging.symbolic import check_math_verify


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes:
        name: As in `summary.json`.
        title: As in tables.
        style: The `style` of `extract_answer`.
        check_gold: Raises `GoldAnswerError` for a reference that cannot be judged by.
        same: Whether two extracted answers are one and the same vote.
        example: A reference answer, for messages.
        check_ready: Raises `EvaluationError` where answers cannot be judged, before any is generated.
    """

    name: str
    title: str
    style: str | None
    check_gold: Callable[[str], object]
    same: Callable[[str, str], bool]
    example: str
    check_ready: Callable[[], None] = lambda: None

    def load(self, source: str, split: str, limit: int | None) -> Dataset:
        """Load the questions and make sure that each can be judged.

        Args:
            source: As for `load_examples`.
            split: The split.
            limit: Only so many.

        Returns:
            The columns `question` and `answer`.

        Raises:
            DataError: If the data cannot be read, or questions have no usable answer.
        """
        examples = load_examples(source, split=split, limit=limit)
        if not {"question", "answer"} <= set(examples.column_names):
            raise DataError(
                f"{source}: there are no reference answers, only {', '.join(examples.column_names)}; evaluation "
                f"needs a question and an answer such as {self.example}"
            )
        problems = []
        for row, gold in enumerate(examples["answer"], start=1):
            try:
                if gold is None:
                    raise GoldAnswerError("there is no reference answer")
                self.check_gold(gold)
            except GoldAnswerError as error:
                problems.append(f"record {row}: {error}")
        if problems:
            raise DataError(
                f"{source}: {len(problems)} of {len(examples)} records cannot be judged; "
                f"{'; '.join(problems[:3])}{'; ...' if len(problems) > 3 else ''}"
            )
        return examples.select_columns(["question", "answer"])

    def judge(self, row: dict[str, str], answer: Generation) -> Item:
        """Return the line of `items.jsonl` for a question and what the model answered."""
        found = extract_answer(answer.text, style=self.style)
        return {
            "index": answer.index,
            "sample": answer.sample,
            "question": row["question"],
            "gold": row["answer"],
            "response": answer.text,
            "predicted": shown_answer(found),
            "found_by": found.found_by,
            "correct": is_correct(found, row["answer"]),
            "finished": answer.finished,
            "new_tokens": answer.n_tokens,
        }

    def vote(self, predictions: Sequence[str | None]) -> list[list[int]]:
        """Group the answers that are the same.

        Args:
            predictions: What `judge` put into `predicted`, a sample each; None does not vote.

        Returns:
            The places of each group's answers, the largest group first.
        """
        groups: list[list[int]] = []
        for place, prediction in enumerate(predictions):
            if prediction is None:
                continue
            for group in groups:
                first = predictions[group[0]]
                if first == prediction or (first is not None and self.same(first, prediction)):
                    group.append(place)
                    break
            else:
                groups.append([place])
        return sorted(groups, key=len, reverse=True)


def shown_answer(answer: Answer) -> str | None:
    """Return an answer as `items.jsonl` holds it: the exact value of a number, the LaTeX of anything else."""
    if answer.math:
        return answer.text or None
    return None if answer.value is None else str(answer.value)


GSM8K = Task("gsm8k", "GSM8K", None, gold_value, str.__eq__, "'18' or '... #### 18'")
"""Grade-school word problems; every answer is a number."""

MATH = Task(
    "math",
    "MATH",
    "math",
    gold_expression,
    equivalent,
    r"'\\frac{1}{2}' or '... \\boxed{18}'",
    check_math_verify,
)
"""Competition problems; an answer may be any expression."""
