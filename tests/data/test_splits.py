import re
from contextlib import suppress

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.data.errors import DataError
from mce_llm.data.splits import chosen_rows

BOUND = st.one_of(st.just(""), st.integers(-30, 30).map(str), st.integers(-99, 99).map(lambda n: f"{n}%"))


@given(st.integers(1, 25), BOUND, BOUND)
def test_slices_are_those_of_datasets(count, start, stop):
    spec = f"train[{start}:{stop}]"
    data = datasets.Dataset.from_dict({"n": list(range(count))})
    instruction = datasets.ReadInstruction.from_spec
    try:
        (found,) = instruction(spec).to_absolute({"train": count})
        expected = data[found.from_ : found.to]["n"] if found.to > found.from_ else []
    except (ValueError, AssertionError):
        expected = []
    if expected:
        ((name, rows),) = chosen_rows("here", spec, {"train": count})
        assert (name, list(rows)) == ("train", expected)
    else:
        with pytest.raises(DataError):
            chosen_rows("here", spec, {"train": count})


@given(st.integers(1, 400), st.integers(1, 99))
def test_two_slices_share_nothing_and_leave_nothing_out(count, percent):
    parts = []
    for spec in (f"train[:{percent}%]", f"train[{percent}%:]"):
        with suppress(DataError):  # one part may hold no row, and is refused
            parts += [row for _, rows in chosen_rows("here", spec, {"train": count}) for row in rows]
    assert parts == list(range(count))


def test_several_splits():
    found = chosen_rows("here", "test[1:] + train[:2]", {"train": 3, "test": 3})
    assert [(name, list(rows)) for name, rows in found] == [("test", [1, 2]), ("train", [0, 1])]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tran[:50%]", "no split 'tran' (did you mean 'train'?); there are train"),
        ("train+dev", "no split 'dev'; there are train"),
        ("train[::2]", "the split 'train[::2]' cannot be read"),
        ("train[:120%]", "the split 'train[:120%]' cannot be read"),
        ("train[5:5]", "the split 'train[5:5]' holds none of its 10 rows"),
        ("train[", "cannot be read"),
    ],
)
def test_bad_input(spec, message):
    with pytest.raises(DataError, match=re.escape(message)):
        chosen_rows("here", spec, {"train": 10})
