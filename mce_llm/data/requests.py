"""What is asked of a source of data, and what was made of it, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mce_llm.data.formats import RecordFormat
from mce_llm.data.questions import QuestionFormat

ONLY = "train"
"""The name of the split of data that have a single one."""


@dataclass(frozen=True)
class Reading:
    """What was made of a source.

    Attributes:
        layout: The format, and which column plays which role; of what kind, is as `Request.evaluation` says.
        unused: Columns that play none.
        ignored: Those of them that have something in them, under a name that means something to training.
        place: Where the example of a number (from 0) is from: ``"a.jsonl, line 3"``.
    """

    layout: RecordFormat | QuestionFormat
    unused: tuple[str, ...]
    ignored: tuple[str, ...]
    place: Callable[[int], str]


@dataclass(frozen=True)
class Request:
    """What is wanted of a source.

    Attributes:
        split: As for `load_examples`, and so the other attributes but the last.
        default_split: As there.
        name: As there.
        revision: As there.
        columns: As there; for evaluation with the roles of `mce_llm.data.questions`.
        format: As there.
        limit: As there.
        seed: As there.
        evaluation: Read questions with reference answers, for which a bare value is enough: the columns `question`, `answer`
            and, where there is no reference that can be taken, `problem`, which says why.
        solutions: With `evaluation`: the column `solution` as well, the worked solution as training would have it, or the
            answer where the data have nothing else.
    """

    split: str | None = None
    default_split: str = ONLY
    name: str | None = None
    revision: str | None = None
    columns: Mapping[str, str | None] | None = None
    format: str = "auto"
    limit: int | None = None
    seed: int | None = None
    evaluation: bool = False
    solutions: bool = False
