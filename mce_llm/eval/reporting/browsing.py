"""Questions and answers as the page's browser wants them: JSON that stands inside the HTML and cannot break out of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from mce_llm.eval.reporting.sections import Member, Section

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_VIEWS = 60  # choices beyond which a list of pairs of runs helps nobody


FORMS = {
    "hash": "####",
    "answer_is": "The answer is",
    "boxed": "\\boxed",
    "answer_tag": "<answer>",
    "a_colon": "A: or Answer:",
    "bold": "bold",
    "last_number": "last number (fall-back)",
    "none": "no answer",
    "thinking": "still thinking",
}
"""`found_by` of an item → what people call it."""


def browser_data(sections: Sequence[Section]) -> dict[str, Any]:
    """Everything that the browser shows.

    Args:
        sections: The sections of the report.

    Returns:
        `forms`, and under `sections` for each section its questions, runs, views and the names of its sides. A question is [text, gold]; runs on other data have another set
        of them. An answer is [response, predicted, found by, right, finished, tokens], a list of answers for each
        question, one a sample. A view is what is shown side by side: two runs, or one.
    """
    return {"forms": FORMS, "sections": [_section(section) for section in sections]}


def embedded_json(content: Any) -> str:
    """JSON for a `<script type="application/json">`: nothing in it is markup to a browser, whatever the strings hold.

    Args:
        content: Anything that JSON can hold; lone surrogates, which UTF-8 cannot, are kept as escapes.
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _section(section: Section) -> dict[str, Any]:
    sets: list[list[list[str]]] = []
    runs: list[dict[str, Any]] = []
    for member in section.members:
        asked, answers = _columns(member)
        if asked not in sets:
            sets.append(asked)
        look = member.look
        runs.append(
            {
                "tag": look.tag,
                "name": look.name,
                "colour": look.colour,
                "arm": look.arm,
                "set": sets.index(asked),
                "answers": answers,
            }
        )
    pairs = [[2 * k, 2 * k + 1] for k in range(len(section.pairs))]
    return {
        "task": section.key,
        "title": section.title,
        "sets": sets,
        "runs": runs,
        "paired": bool(pairs),
        "sides": list(section.sides),
        "views": pairs or _views([run["set"] for run in runs]),
    }


def _columns(member: Member) -> tuple[list[list[str]], list[list[list[Any]]]]:
    """The questions of a run, and its answers to each."""
    questions: list[list[str]] = []
    answers: list[list[list[Any]]] = []
    for item in member.run.items:
        if item["sample"] == 0:
            questions.append([item["question"], item["gold"]])
            answers.append([])
        answer = [
            item[name] for name in ("response", "predicted", "found_by", "correct", "finished", "new_tokens")
        ]
        answers[-1].append(answer)
    return questions, answers


def _views(sets: Sequence[int]) -> list[list[int]]:
    """Any two runs on the same questions, as far as they are not too many; and each run that has no such partner."""
    two = [[a, b] for a, b in combinations(range(len(sets)), 2) if sets[a] == sets[b]]
    if len(two) > _MOST_VIEWS:
        first = {group: sets.index(group) for group in sets}
        two = [[first[group], place] for place, group in enumerate(sets) if place != first[group]]
    alone = [[place] for place in range(len(sets)) if not any(place in view for view in two)]
    return two + alone
