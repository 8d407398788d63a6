"""The benchmarks: where their questions come from, and how their answers are judged.

Anything with a `question` and an `answer` can be evaluated as one of these; `evaluation` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from mce_llm.data.errors import DataError, problem_list
from mce_llm.data.final_answers import ANSWER_PLACE
from mce_llm.eval.answers import MATH as MATH_STYLE
from mce_llm.eval.answers import Answer, GoldAnswerError, gold_expression, gold_value, judge, same_answer
from mce_llm.eval.items import TASK_TITLES, Generation, Item
from mce_llm.eval.judging.answer import expression_answer
from mce_llm.eval.judging.symbolic import check_math_verify

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_SPLIT = "test"
UNREADABLE = ("refuse", "skip")
"""What becomes of a data set with references that cannot be judged by."""
_SHOWN = 5
_MULTIPLE_CHOICE = "the data are multiple choice: the reference is what the right option says, and the options are not shown to the model"


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Attributes:
        rows: The columns `question` and `answer`; with `Task.solutions` also `solution`, and where in it the answer stands.
        skipped: The records that were left out because their reference cannot be judged by: where, and why.
        notes: What to know of how they were read.
        unused: The columns of the data that are not asked and not judged by.
    """

    rows: Dataset
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes:
        name: As in `summary.json`.
        style: The `style` of `extract_answer`.
        check_gold: Raises `GoldAnswerError` for a reference that cannot be judged by.
        example: A reference answer, for messages.
        check_ready: Raises `EvaluationError` where answers cannot be judged, before any is generated.
        solutions: Load the worked solutions as well, for a task that scores them.
    """

    name: str
    style: str | None
    check_gold: Callable[[str], object]
    example: str
    check_ready: Callable[[], None] = lambda: None
    solutions: bool = False

    @property
    def title(self) -> str:
        """The name as in tables."""
        return TASK_TITLES[self.name]

    @property
    def columns(self) -> list[str]:
        """Those of the rows that `load` gives."""
        return ["question", "answer", *(("solution", *ANSWER_PLACE) if self.solutions else ())]

    def load(
        self,
        source: str,
        split: str | None = None,
        limit: int | None = None,
        *,
        name: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        unreadable: str = "refuse",
    ) -> Questions:
        """Load the questions and make sure that each can be judged.

        Args:
            source: As for `load_examples`.
            split: The split; by default `DEFAULT_SPLIT`, or the only one.
            limit: Only so many records.
            name: The configuration of a data set of the hub.
            columns: Role (of `mce_llm.data.questions`) → column, for records of other forms.
            unreadable: One of `UNREADABLE`: what becomes of records whose reference cannot be judged by.

        Returns:
            The questions.

        Raises:
            DataError: If the data cannot be read, a record has no question, or references cannot be judged by and are not
                to be skipped, or all are like that.
        """
        # Imported here, so that judging answers and comparing runs need neither datasets nor torch.
        from mce_llm.data.requests import Request
        from mce_llm.data.sources import read_examples

        asked = Request(
            split,
            DEFAULT_SPLIT,
            name,
            columns=columns,
            limit=limit,
            evaluation=True,
            solutions=self.solutions,
        )
        examples, reading = read_examples(source, asked)
        kept, skipped = [], []
        for number, row in enumerate(examples):
            try:
                if row["answer"] is None:
                    raise GoldAnswerError(row["problem"])
                self.check_gold(row["answer"])
                kept.append(number)
            except GoldAnswerError as error:
                skipped.append(f"{reading.place(number)}: {error}")
        if skipped and (unreadable == "refuse" or not kept):
            advice = (
                "correct them, or leave them out with --unreadable_references skip"
                if kept
                else f"{self.title} needs an answer such as {self.example}; say which column holds it with --columns "
                "'{answer: NAME}'"
            )
            use = "whose tokens can be told" if self.solutions else f"that {self.title} can judge by"
            raise DataError(
                f"{source}: {len(skipped)} of {len(examples)} records have no reference answer {use}:{problem_list(skipped[:_SHOWN], len(skipped))}\n{advice}"
            )
        rows = examples.select(kept).select_columns(self.columns)
        notes = [_MULTIPLE_CHOICE] if "options" in reading.layout.columns else []
        if reading.unused:
            notes.append(f"questions of {source}, without the columns {', '.join(map(repr, reading.unused))}")
        return Questions(rows, tuple(skipped), tuple(notes), reading.unused)

    def judge(
        self, row: dict[str, str], answer: Generation, *, opened: str = "", thinking_tags: Sequence[str] = ()
    ) -> Item:
        """Return the line of `items.jsonl` for a question and what the model answered.

        Args:
            row: The question and its reference answer.
            answer: What the model wrote.
            opened: The tag that the prompt ended with, where it opened a block of thoughts; the response is kept with it,
                so that it can be judged by itself.
            thinking_tags: As for `extract_answer`.

        Returns:
            The line.
        """
        response = opened + answer.text
        verdict = judge(response, row["answer"], self.style, thinking_tags=thinking_tags)
        return {
            "index": answer.index,
            "sample": answer.sample,
            "question": row["question"],
            "gold": row["answer"],
            "response": response,
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
