r"""Questions with reference answers, for evaluation: which columns hold them, and what the reference of a record is.

Training needs a worked response, which `formats` knows; here a bare value is enough. Whether a reference can be judged by is
known to the tasks of `mce_llm.eval`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from datasets import Features, Value

from mce_llm.data.choices import chosen_option
from mce_llm.data.conversations import messages_in, question_of
from mce_llm.data.errors import DataError, problem_list, shorten
from mce_llm.data.final_answers import ANSWER_PLACE, BadReference, answer_place, final_answer, marked_answer
from mce_llm.data.formats import CONTEXTS
from mce_llm.data.values import BadRecord, text_of, whole_text, without_calculator_notes
from mce_llm.running.messages import nearest_hint

# Role → the columns that may play it, the first that has something in it. Names that say "final" go before `answer`, which
# may be a worked solution beside them; an answer goes before a solution.
CANDIDATES: dict[str, tuple[str, ...]] = {
    "question": (
        *("question", "problem", "query", "instruction", "prompt", "question_text", "problem_text"),
        *("problem_statement", "squestion", "input"),
    ),
    "answer": (
        *("final_answer", "final_ans", "answer_number", "expected_answer", "correct_answer", "gold_answer"),
        *("reference_answer", "short_answer", "answer", "target", "ground_truth", "gold", "reference"),
        *("lsolutions", "correct", "answerkey"),
    ),
    "response": ("solution", "response", "output", "completion"),
    "context": CONTEXTS[:3],  # the others are shown where they are named
    "input": ("input",),
    "options": ("options", "choices"),
    "numbers": ("numbers",),
    "messages": ("messages", "conversations", "conversation"),
}
# The roles of a training on prompts, by their names here, so that its columns serve for its held-out data.
_AS_TRAINED = {"prompt": "question", "completion": "response"}
_NEEDED = ("question", "answer", "response", "messages")
# Columns that belong to a question, and that no prompt of an evaluation shows.
_NOT_SHOWN = (
    *("images", "image", "audios", "audio", "videos", "video"),
    *("system", "system_prompt", "history", "tools", "functions"),
)
_PLACE = re.compile(r"\bN_?(\d{1,2})\b")


@dataclass(frozen=True)
class QuestionFormat:
    """Which column plays which role in records that are questions with reference answers.

    Attributes:
        columns: Role of `CANDIDATES` → column; either `question` or `messages`, and perhaps neither `answer` nor `response`
            where the reference stands in the messages.
        single: Columns of numbers in single precision or less, which are meant as they print.
        table: Whether null stands for a key that is not there, as in a table.
        name: As the formats of training have one.
        solutions: Give the worked solution of each reference as well, as training would have it; `response` is then its
            column, beside that of the answer where there are two.
    """

    columns: Mapping[str, str]
    single: tuple[str, ...] = ()
    table: bool = False
    name: str = "questions"
    solutions: bool = False

    @property
    def kind(self) -> str:
        """What the records are, for messages."""
        return "questions with reference answers"

    def features(self, keys: Iterable[str] = ()) -> Features:
        """The columns that conversion gives.

        Args:
            keys: Not needed: they are always the same.
        """
        found = {column: Value("string") for column in ("question", "answer", "problem")}
        if self.solutions:
            found |= {"solution": Value("string"), **{place: Value("int64") for place in ANSWER_PLACE}}
        return Features(found)

    def convert(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return `question`, and either `answer`, the reference as text, or `problem`, which says why there is none.

        With `solutions` also `solution`, a text that ends in the answer or is the answer, and its characters where the
        answer begins and ends (`ANSWER_PLACE`; null where it marks none).

        Raises:
            BadRecord: There is no question.
        """
        question, written = self._question(record)
        try:
            found = {"question": question, "answer": self._reference(record, written), "problem": None}
            return found | (self._solution(record, written) if self.solutions else {})
        except BadReference as error:
            return {"question": question, "answer": None, "problem": str(error)}

    def _question(self, record: Mapping[str, Any]) -> tuple[str, str | None]:
        """The question, and the answer that a conversation gives to it."""
        columns = self.columns
        column = columns.get("messages") or columns["question"]
        if "messages" in columns or isinstance(
            record.get(column), list
        ):  # a prompt may be a list of messages
            question, written = _asked(record, column, table=self.table)
        else:
            question, written = question_of(record, columns), None
        if "numbers" in columns:
            question = _with_numbers(question, record.get(columns["numbers"]))
        if "context" in columns and record.get(columns["context"]) is not None:
            column = columns["context"]
            context = text_of(record, column, empty=True).strip()
            if context and not question.startswith(context):
                question = f"{context}{' ' if column.lower() == 'body' else chr(10)}{question}"
        return question, written

    def _reference(self, record: Mapping[str, Any], written: str | None) -> str:
        column = self.columns.get("answer") or self.columns.get("response")
        if column is None:
            if written is None:
                raise BadReference("the conversation does not end in an answer")
            return final_answer(written, "the answer in the conversation", worked=True)
        return final_answer(self._written(record, column), repr(column), **self._reading(column))

    def _solution(self, record: Mapping[str, Any], written: str | None) -> dict[str, Any]:
        columns = self.columns
        column = columns.get("response") or columns.get("answer")
        if column is None or ("messages" in columns and written is not None):
            column, text = None, str(written)
        else:
            text = self._written(record, column)
        if column is not None and ("response" not in columns or _usual(column) == "answer"):
            text = without_calculator_notes(text)  # worked out, it is GSM8K's
        if "answer" in columns and columns["answer"] != column:
            place = marked_answer(text)
        else:
            place = answer_place(text, repr(column), **self._reading(column))
        found = (None, None) if place is None else (place.start, place.stop)
        return {"solution": text, **dict(zip(ANSWER_PLACE, found, strict=True))}

    def _reading(self, column: str | None) -> dict[str, bool]:
        """How the answer is found in the text of a column; None for that of a conversation."""
        return {"worked": "answer" not in self.columns, "said_first": column != "solution"}

    def _written(self, record: Mapping[str, Any], column: str) -> str:
        """What a column holds as the answer: the right option's text where it names one."""
        value = record.get(column)
        if "options" in self.columns and column == self.columns.get("answer", column):
            try:
                option = chosen_option(record.get(self.columns["options"]), value)
            except ValueError as error:
                raise BadReference(str(error)) from None
            value = value if option is None else option
        if column in self.single and isinstance(value, float):
            value = float(str(np.float32(value)))
        return _text(value, column)


def _text(value: Any, column: str) -> str:
    """A reference as text: numbers exactly as they are, the only item of a list."""
    if isinstance(value, list | tuple | np.ndarray):
        if len(value) > 1:
            raise BadReference(
                f"{column!r} is a list of {len(value)} answers, and one is needed: {shorten(value)}"
            )
        value = value[0] if len(value) else None
        if isinstance(value, list):
            raise BadReference(f"{column!r} is a list in a list: {shorten(value)}")
    if isinstance(value, str):
        if not value.strip():
            raise BadReference("there is no reference answer")
        try:
            return whole_text(value, repr(column))
        except BadRecord as error:
            raise BadReference(str(error)) from None
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        raise BadReference("there is no reference answer")
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise BadReference(
            f"{column!r} is {type(value).__name__} {shorten(value)}, neither a text nor a number"
        )
    if not math.isfinite(value):
        raise BadReference(f"{column!r} is {value}, which is no number")
    if isinstance(value, int):
        return str(value)
    # The shortest decimal number that is read as this float, in digits: 51.0, 0.1 and not a sum of powers of two.
    return format(value if isinstance(value, Decimal) else Decimal(json.dumps(value)), "f")


def _asked(record: Mapping[str, Any], column: str, *, table: bool) -> tuple[str, str | None]:
    """The question of a conversation of one turn, and the answer in it, where there is one."""
    messages = messages_in(record, column, table=table)
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["user", "assistant"]) or not str(messages[0]["content"] or "").strip():
        hint = "; remove the system message and give it with --system_prompt" if "system" in roles else ""
        raise BadRecord(
            f"a conversation with the roles ({', '.join(roles)}) is not one question with at most one answer{hint}"
        )
    return messages[0]["content"], messages[1]["content"] if len(messages) > 1 else None


def _with_numbers(question: str, numbers: Any) -> str:
    """MAWPS keeps the numbers of a question beside it, and `N_00` in their places."""
    if not (places := _PLACE.findall(question)):
        return question
    given = numbers if isinstance(numbers, list) else str(numbers or "").replace(",", " ").split()
    if max(map(int, places)) >= len(given):
        raise BadRecord(
            f"the question has a place for number {max(places)}, and there are {len(given)}: {shorten(numbers)}"
        )
    return _PLACE.sub(lambda place: re.sub(r"\.0+$", "", str(given[int(place[1])])), question)


def detect_questions(
    source: str,
    available: Sequence[str],
    sample: Iterable[Mapping[str, Any]],
    *,
    columns: Mapping[str, str | None] | None = None,
    filled: Callable[[str], bool],
    single: Collection[str] = (),
    table: bool = False,
    solutions: bool = False,
) -> QuestionFormat:
    """Decide which columns hold questions and reference answers.

    Args:
        source: Where the records come from, for messages.
        available: The columns there are.
        sample: A few records.
        columns: Role of `CANDIDATES` → column; None for a role, or for a column, that is to be left out.
        filled: Whether any record has something in a column.
        single: Columns of numbers in single precision or less.
        table: The records come from a table, in which every record has every key.
        solutions: Look for worked solutions as well, beside answers.

    Returns:
        The column of each role that is played.

    Raises:
        DataError: A column that was named does not exist, no column holds questions or references, or one would have to be
            shown with the question and cannot be.
    """
    given = {_AS_TRAINED.get(role, role): column for role, column in (columns or {}).items()}
    _check_given(source, available, given, solutions=solutions)
    chosen = {role: column for role, column in given.items() if column is not None}
    left_out = {name for name, column in given.items() if column is None}

    def find(role: str) -> None:
        taken = set(chosen.values()) | left_out
        if role not in chosen and role not in left_out:
            found = (c for c in _matching(available, CANDIDATES[role]) if c not in taken and filled(c))
            if (column := next(found, None)) is not None:
                chosen[role] = column

    if "question" not in chosen:
        find("messages")
    if "messages" not in chosen:
        find("question")
        if chosen.get("question") == "instruction" and "input" not in chosen:  # as training puts it, below
            found = (c for c in ("context", "input") if c in available and c not in left_out and filled(c))
            if (more := next(found, None)) is not None:
                chosen["input"] = more
        for role in ("context", "input", "numbers"):
            find(role)
    if "response" not in chosen or solutions:
        find("answer")
    if ("answer" not in chosen or solutions) and "messages" not in chosen:
        find("response")
        if (
            solutions and "response" not in chosen
        ):  # GSM8K's, with the final answer in a column of its own besides
            rest = (c for c in _matching(available, ("answer",)) if c not in {*chosen.values(), *left_out})
            worked = (c for c in rest if any("####" in str(record.get(c)) for record in sample))
            if (column := next(worked, None)) is not None:
                chosen["response"] = column
    find("options")
    if "numbers" in chosen and not any(_PLACE.search(str(row.get(chosen["question"]))) for row in sample):
        del chosen["numbers"]
    _check_found(source, available, chosen)
    # A column that has the name of a role is left out where that role was given another one.
    others = [c for c in available if c not in {*chosen.values(), *given} and filled(c)]
    contexts = () if "context" in left_out else CONTEXTS
    unseen, beside = ([c for c in others if _usual(c) in names] for names in (_NOT_SHOWN, contexts))
    _check_shown(source, unseen, beside, chosen.get("context"))
    return QuestionFormat(chosen, tuple(single), table, solutions=solutions)


def with_inner(record: Mapping[str, Any], columns: Mapping[str, str | None] | None) -> dict[str, Any]:
    """A record with the values inside others that `columns` names by a path, as `reward_model.ground_truth`."""
    whole = dict(record)
    for column in (columns or {}).values():
        if not isinstance(column, str) or column in record:
            continue
        inner: Any = record
        for key in column.split("."):
            if not isinstance(inner, Mapping) or key not in inner:
                break
            inner = inner[key]
        else:
            whole[column] = inner
    return whole


def _matching(available: Sequence[str], candidates: Sequence[str]) -> Iterator[str]:
    """The columns of some names in the names' order, those in the same case first."""
    for name in candidates:
        yield from sorted((c for c in available if _usual(c) == name), key=lambda c: c != name)


def _usual(column: str) -> str:
    """The name of a column in the way that most data sets write it: `Final Answer` as `final_answer`."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _check_given(
    source: str, available: Sequence[str], given: Mapping[str, str | None], *, solutions: bool
) -> None:
    problems = []
    for role, column in given.items():
        if role not in CANDIDATES and (column is not None or role not in available):
            problems.append(
                f"unknown role {role!r}{nearest_hint(role, CANDIDATES)}; the roles are {', '.join(CANDIDATES)}"
            )
        elif column is not None and not isinstance(column, str):
            problems.append(f"the {role} must be the name of a column, got {column!r}")
        elif column is not None and column not in available:
            problems.append(f"there is no column {column!r} for the {role}{nearest_hint(column, available)}")
    for one, other in (("answer", "response"), ("question", "messages")):
        if solutions and one == "answer":
            continue
        if given.get(one) is not None and given.get(other) is not None:
            problems.append(f"{one} and {other} say the same; name one of them")
    if problems:
        raise DataError(
            f"{source}: columns={dict(given)} cannot be used:{problem_list(problems, len(problems))}"
            f"\nThe columns are {_listed(available)}"
        )


def _check_found(source: str, available: Sequence[str], chosen: Mapping[str, str]) -> None:
    missing = []
    if not {"question", "messages"} & set(chosen):
        missing.append("a question")
    if not set(_NEEDED[1:]) & set(chosen):
        missing.append("a reference answer")
    if missing:
        raise DataError(
            f"{source}: no column is known to hold {' or '.join(missing)}, or it is empty; the columns are "
            f"{_listed(available)}. Say which holds what with --columns '{{question: NAME, answer: NAME}}'"
        )


def _check_shown(source: str, unseen: Sequence[str], beside: Sequence[str], shown: str | None) -> None:
    """Refuse what belongs to the questions and would not be asked: what no prompt shows, and texts that could be shown."""

    def left_out(columns: Sequence[str]) -> str:
        return f"leave it out with --columns '{{{', '.join(f'{column}: null' for column in columns)}}}'"

    problems = []
    if unseen:
        problems.append(
            f"the questions come with {_listed(unseen)}, which no prompt shows; remove the column, give a system message with "
            f"--system_prompt, or {left_out(unseen)}"
        )
    if beside:
        instead = "" if shown is None else f" in place of {shown!r}"
        problems.append(
            f"the questions come with {_listed(beside)}, which is not shown with them; put a column in front of them{instead} with "
            f"--columns '{{context: {beside[0]}}}', or {left_out(beside)}"
        )
    if problems:
        raise DataError("\n".join(f"{source}: {problem}" for problem in problems))


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"
