"""The benchmarks: where their questions come from, and how their answers are judged.

Anything with a `question` and an `answer` can be evaluated as one of these; `evaluation` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from datasets import Dataset

from mce_llm.data import DataError, load_examples
from mce_llm.eval.answers import MATH as MATH_STYLE
from mce_llm.eval.answers import Answer, GoldAnswerError, gold_expression, gold_value, judge, same_answer
from mce_llm.eval.engines.decoding import Generation
from mce_llm.eval.items import TASK_TITLES, Item
from mce_llm.eval.judging.answer import expression_answer
from mce_llm.eval.judging.symbolic import check_math_verify

DEFAULT_SPLIT = "test"


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes:
        name: As in `summary.json`.
        style: The `style` of `extract_answer`.
        check_gold: Raises `GoldAnswerError` for a reference that cannot be judged by.
        example: A reference answer, for messages.
        check_ready: Raises `EvaluationError` where answers cannot be judged, before any is generated.
    """

    name: str
    style: str | None
    check_gold: Callable[[str], object]
    example: str
    check_ready: Callable[[], None] = lambda: None

    @property
    def title(self) -> str:
        """The name as in tables."""
        return TASK_TITLES[self.name]

    def load(self, source: str, split: str | None, limit: int | None) -> Dataset:
        """Load the questions and make sure that each can be judged.

        Args:
            source: As for `load_examples`.
            split: The split; by default `DEFAULT_SPLIT`, or the only one.
            limit: Only so many.

        Returns:
            The columns `question` and `answer`.

        Raises:
            DataError: If the data cannot be read, or questions have no usable answer.
        """
        examples = load_examples(source, split=split, default_split=DEFAULT_SPLIT, limit=limit)
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
        verdict = judge(answer.text, row["answer"], self.style)
        return {
            "index": answer.index,
            "sample": answer.sample,
            "question": row["question"],
            "gold": row["answer"],
            "response": answer.text,
            "predicted": _recorded(verdict.answer),
            "found_by": verdict.answer.found_by,
            "correct": verdict.correct,
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
        groups: list[tuple[Answer, list[int]]] = []
        for place, prediction in enumerate(predictions):
            if prediction is None:
                continue
            vote = self._read_recorded(prediction)
            for first, places in groups:
                if vote == first or same_answer(first, vote):
                    places.append(place)
                    break
            else:
                groups.append((vote, [place]))
        return sorted((places for _, places in groups), key=len, reverse=True)

    def _read_recorded(self, predicted: str) -> Answer:
        """Return the answer that `_recorded` wrote."""
        if self.style == MATH_STYLE:
            return expression_answer(predicted, "bare")
        return Answer(Fraction(predicted), predicted, "bare")


def _recorded(answer: Answer) -> str | None:
    """Return an answer as `items.jsonl` holds it: the exact value of a number, the LaTeX of anything else."""
    if answer.math:
        return answer.text or None
    return None if answer.value is None else str(answer.value)


GSM8K = Task("gsm8k", None, gold_value, "'18' or '... #### 18'")
"""Grade-school word problems; every answer is a number."""

MATH = Task(
    "math",
    MATH_STYLE,
    gold_expression,
    r"'\\frac{1}{2}' or '... \\boxed{18}'",
    check_math_verify,
)
"""Competition problems; an answer may be any expression."""
