"""Splits and slices of local data: ``train``, ``train[:75%]``, ``test[100:]+train[:10]``, read as `datasets` reads them."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import ReadInstruction

from mce_llm.data.errors import DataError
from mce_llm.running.messages import nearest_hint


def chosen_rows(source: str, split: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """Which rows a split's name asks for.

    Args:
        source: Where the data come from, for messages.
        split: A name; perhaps a slice of it, in rows or in per cent; perhaps several joined by ``+``.
        sizes: Rows of each split there is.

    Returns:
        (split, rows) in the order asked for.

    Raises:
        DataError: There is no such split, the slice cannot be read, or it holds no row.
    """
    names = [part.partition("[")[0].strip() for part in split.split("+")]
    for name in names:
        if name not in sizes:
            raise DataError(
                f"{source}: no split {name!r}{nearest_hint(name, sizes)}; there are {', '.join(sizes)}"
            )
    try:
        found = ReadInstruction.from_spec(split.replace(" ", "")).to_absolute(dict(sizes))
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{source}: the split {split!r} cannot be read ({error}); slices are written as train[:75%], train[75%:] or "
            "train[100:200]"
        ) from error
    rows = [(item.splitname, range(item.from_, max(item.from_, item.to))) for item in found]
    if not any(len(places) for _, places in rows):
        raise DataError(
            f"{source}: the split {split!r} holds none of its {sum(sizes[n] for n in set(names)):,} rows"
        )
    return rows
