"""What could steer a terminal, or hide on it, is written out wherever text of others is printed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.terminals import acts
from mce_llm.running.visible_text import json_text, print_visible, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("over\rwritten\x08", "over\\rwritten\\x08"),
        ("\ud800 \u2028\ufeff\U000e0041", "\\ud800 \\u2028\\ufeff\\U000e0041"),
        ("two\nlines\tand é 北 👩\u200d🔬 −", "two\nlines\tand é 北 👩\u200d🔬 −"),
    ],
)
def test_what_is_written_out_and_what_is_not(text, shown):
    assert visible(text) == shown


def test_a_line_stays_one():
    assert visible("a\nb\tc", one_line=True) == "a\\nb\\tc"


@given(st.text(st.characters(codec=None)))
def test_nothing_that_acts_is_left(text):
    shown = visible(text)
    assert not any(map(acts, shown))
    shown.encode("utf-8")
    assert visible(shown) == shown


@given(
    st.recursive(
        st.text(st.characters(codec=None)), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_says_the_same(content):
    text = json_text(content)
    assert json.loads(text) == content
    assert not any(map(acts, text))


def test_lines_are_printed(capsys):
    print_visible("error: \x1b[31m\nnext")
    assert capsys.readouterr().out == "error: \\x1b[31m\nnext\n"
