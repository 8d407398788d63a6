"""The categories of an annotation file, and whether two files, or a file and a detector, mean the same by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mce_llm.vision.coco.errors import CocoDataError
from mce_llm.vision.coco.records import Id, Problems, id_of, in_order, shown

_SHOWN = 5


def read_categories(records: Sequence[Any], problems: Problems) -> dict[Id, str]:
    """Read and check the categories.

    Args:
        records: The file's `categories`.
        problems: Where what is wrong is noted.

    Returns:
        The name of each id, the ids in ascending order: the n-th is label n.
    """
    names: dict[Id, str] = {}
    for n, record in enumerate(records):
        place = f"categories[{n}]"
        lacking = [k for k in ("id", "name") if not isinstance(record, dict) or k not in record]
        if lacking:
            problems.add(f"category without {', '.join(lacking)}", f"{place} {shown(record)}")
            continue
        identity, name = id_of(record["id"]), record["name"]
        if identity is None:
            problems.add(
                "category id that is neither a whole number nor text", f"{place} {shown(record['id'])}"
            )
        elif isinstance(name, bool) or not isinstance(name, str | int | float):
            problems.add("category whose name is no text", f"{place} (id {identity}: {shown(name)})")
        elif identity in names:
            problems.add("category id given more than once", str(identity))
        else:
            names[identity] = str(name)
    kinds = Counter(type(identity).__name__ for identity in names)
    if len(kinds) > 1:
        problems.add(
            "category ids of which some are numbers and some text",
            ", ".join(shown(identity) for identity in list(names)[:_SHOWN]),
        )
    return {identity: names[identity] for identity in in_order(names)}


def check_same_categories(
    known: Sequence[Id],
    known_names: Sequence[str],
    source: str,
    ids: Sequence[Id],
    names: Sequence[str],
    path: str,
) -> None:
    """A detector is judged on the categories that it knows: the same ids, and by each the same thing.

    Args:
        known: The ids that it was, or will be, trained on.
        known_names: Their names.
        source: Whose ids these are, for the message.
        ids: Those of the annotations that it is judged on.
        names: Their names.
        path: The file of these annotations.

    Raises:
        CocoDataError: Ids or names differ.
    """
    first, second = (dict(zip(*pair, strict=True)) for pair in ((known, known_names), (ids, names)))
    if set(first) != set(second):
        only_here, only_there = (
            in_order(set(a) - set(b))[:_SHOWN] for a, b in ((first, second), (second, first))
        )
        same_names = (
            "; the names are the same, so number the categories alike in both"
            if sorted(known_names) == sorted(names)
            else ""
        )
        raise CocoDataError(
            f"{source} and {path} have different categories: {len(set(first) - set(second))} only in the first "
            f"({_listed(only_here, first)}), {len(set(second) - set(first))} only in the second "
            f"({_listed(only_there, second)}){same_names}"
        )
    different = [identity for identity in first if first[identity] != second[identity]]
    if different:
        listed = ", ".join(
            f"{identity} is {first[identity]!r} there and {second[identity]!r} here"
            for identity in different[:_SHOWN]
        )
        more = ", …" if len(different) > _SHOWN else ""
        raise CocoDataError(
            f"{source} and {path} call {len(different)} of their {len(ids)} categories by different names: {listed}{more}; "
            "give the same category the same id and name in both"
        )


def _listed(ids: list[Id], names: dict[Id, str]) -> str:
    return ", ".join(f"{identity} {names[identity]}" for identity in ids) or "–"
