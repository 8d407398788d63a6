"""Reference solutions as token ids behind their prompts, and which of their tokens are numbers, results and the answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mce_llm.data import PromptTemplate
from mce_llm.data.errors import DataError, problem_list
from mce_llm.data.final_answers import ANSWER_PLACE
from mce_llm.eval.likelihood.items import GROUPS
from mce_llm.eval.likelihood.numerals import numerals

_SHOWN = 5


@dataclass(frozen=True)
class Reference:
    """The reference solution of one question, ready to be scored.

    Attributes:
        question: Its text.
        gold: The final answer.
        prompt_ids: What the model is given.
        completion_ids: What is scored: the ids that training puts labels on, T of them.
        groups: For each of `GROUPS` which of these are in it, (T,).
    """

    question: str
    gold: str
    prompt_ids: list[int]
    completion_ids: list[int]
    groups: Mapping[str, NDArray[np.bool_]]

    @property
    def length(self) -> int:
        """Positions that the model runs over: the last token is predicted and not read."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1


def encode_references(
    rows: Iterable[Mapping[str, Any]], template: PromptTemplate, tokenizer: PreTrainedTokenizerBase
) -> list[Reference]:
    """Encode solutions as training would, behind prompts as at evaluation; see `scored_template`.

    Args:
        rows: With `question`, `answer`, `solution` and `ANSWER_PLACE`, as `Task.load` gives them.
        template: How questions are put to the model.
        tokenizer: Its tokenizer, a fast one.

    Returns:
        The references, in the order of the rows.

    Raises:
        DataError: If the tokenizer does not say where its tokens stand in the text, or solutions are not written by the
            chat template as they stand; the message names them.
    """
    references, problems = [], []
    for number, row in enumerate(rows, start=1):
        try:
            references.append(_encoded(row, template, tokenizer))
        except _Rewritten as error:
            problems.append(f"question {number}: {error}")
    if problems:
        raise DataError(
            f"the chat template does not write {len(problems)} of {len(problems) + len(references)} reference solutions as they "
            f"stand, so that their tokens cannot be told:{problem_list(problems[:_SHOWN], len(problems))}\nset another "
            "chat_template, or choose another --prompt"
        )
    return references


class _Rewritten(Exception):
    """A solution that is not in the text that is scored."""


def _encoded(
    row: Mapping[str, Any], template: PromptTemplate, tokenizer: PreTrainedTokenizerBase
) -> Reference:
    pair = template.encode_pair(tokenizer, row["question"], row["solution"], evaluation=True)
    solution = row["solution"].strip()
    first = pair.completion.rfind(solution)
    if first < 0:
        raise _Rewritten(f"{solution[:40]!r} is not in {pair.completion[:60]!r}")
    shift = first - (len(row["solution"]) - len(row["solution"].lstrip()))
    start, end = (row[name] for name in ANSWER_PLACE)
    answer = None if start is None else (start + shift, end + shift)
    places = pair.places + [(len(pair.completion),) * 2] * (len(pair.completion_ids) - len(pair.places))
    groups = token_groups(pair.completion, places, (first, first + len(solution)), answer)
    return Reference(row["question"], row["answer"], pair.prompt_ids, pair.completion_ids, groups)


def groups_of_text(row: Mapping[str, Any]) -> set[str]:
    """The groups of `GROUPS` that a solution has tokens of, with any tokenizer.

    Args:
        row: A question as `LIKELIHOOD.load` gives it.
    """
    solution = row["solution"]
    found = numerals(solution)
    rest = list(solution)
    for numeral in found:
        rest[numeral.start : numeral.end] = " " * (numeral.end - numeral.start)
    there = {
        "all": True,
        "numbers": bool(found),
        "results": any(numeral.result for numeral in found),
        "answer": row[ANSWER_PLACE[0]] is not None,
        "words": bool("".join(rest).strip()),
    }
    return {name for name, is_there in there.items() if is_there}


def token_groups(
    text: str,
    places: Sequence[tuple[int, int]],
    body: tuple[int, int],
    answer: tuple[int, int] | None,
) -> dict[str, NDArray[np.bool_]]:
    """Tell the tokens of a solution by the characters that they stand for, so that any vocabulary is divided alike.

    A token is one of a number if it holds a digit of a literal of `numerals`, or if it holds nothing but characters of literals
    and white space (the comma of `1,234`). ` 18`, `$18` and `18.` as one token are numbers, the space in front of `18` as a token
    of its own is not. A token is one of the answer if it holds a character of it that is no white space.

    Args:
        text: What the tokens stand for.
        places: The characters of each, (begin, end).
        body: Where in the text the solution stands; outside of it there are no numbers.
        answer: Where its final answer stands, if it is known.

    Returns:
        For each of `GROUPS` an array of bool with one entry a token.
    """
    visible = np.array([not character.isspace() for character in text], dtype=bool)
    digit, literal, result, of_answer = (np.zeros(len(text), dtype=bool) for _ in range(4))
    for found in numerals(text[slice(*body)]):
        span = slice(found.start + body[0], found.end + body[0])
        literal[span] = True
        digit[span] = [character.isdecimal() for character in text[span]]
        result[span] = found.result
    if answer is not None:
        of_answer[slice(*answer)] = True

    def holds(what: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(T,) whether each token stands for a character that is marked in `what`."""
        before = np.concatenate([[0], np.cumsum(what)])
        return np.array([before[end] > before[begin] for begin, end in places], dtype=bool)

    only = holds(literal & visible) & ~holds(~literal & visible)
    numbers = holds(digit) | only
    groups = {
        "all": np.ones(len(places), dtype=bool),
        "numbers": numbers,
        "results": numbers & holds(result),
        "answer": holds(of_answer & visible),
        "words": ~numbers,
    }
    assert list(groups) == list(GROUPS)
    return groups
