"""Numbers, words and names in YAML as people write them."""

import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.running.messages import ConfigurationError
from mce_llm.running.yaml_text import Word, dump_yaml, load_record, load_settings, load_yaml

TEXTS = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
WORDS = st.sampled_from(
    [
        "no",
        "yes",
        "on",
        "Off",
        "y",
        "n",
        "010",
        "0o17",
        "1:30",
        "1_0",
        "1e-7",
        ".5",
        "1.",
        "0x1F",
        "2024-05-01",
        "null",
        "~",
        "true",
        "NaN",
        ".inf",
        "<<",
        "=",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | WORDS
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS | WORDS, inner), max_leaves=8
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-7", 1e-7),
        ("1E5", 1e5),
        ("-2e+3", -2e3),
        (".5e-3", 5e-4),
        ("1.e3", 1e3),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("1_000.5", 1000.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("-Infinity", -math.inf),
        ("12", 12),
        ("-0", 0),
        ("1_000", 1000),
        ("010", 10),
        ("0o10", 8),
        ("-0x1F", -31),
        ("0b11", 3),
    ],
)
def test_numbers(text, number):
    found = load_yaml(f"a: {{b: [{text}]}}", "x")["a"]["b"][0]
    assert (found, type(found)) == (number, type(number))


@pytest.mark.parametrize(
    "text", ["1:30", "2024-05-01", "e5", "1e", "1_", "_1", ".", "-", "+e1", "0o8", "1.2.3", "0x", "y", "inf"]
)
def test_words_that_are_no_numbers(text):
    assert load_yaml(f"a: {{b: {text}}}", "x") == {"a": {"b": text}}


@given(st.floats())
def test_every_float_comes_back(number):
    for text in (repr(number), json.dumps(number), yaml.safe_dump(number).splitlines()[0]):
        if text in ("inf", "-inf", "nan"):
            continue  # Python's own spelling is a word
        found = load_yaml(f"a: {{b: {text}}}", "x")["a"]["b"]
        assert found == number or (math.isnan(found) and math.isnan(number))
        assert isinstance(found, float)


@given(NESTED)
def test_what_is_written_comes_back(value):
    text = dump_yaml({"a": value})
    assert load_yaml(text, "x") == {"a": value}
    assert load_record(text, "x") == {"a": value}
    assert yaml.safe_load(text) == {"a": value}


def test_nan_comes_back():
    assert math.isnan(load_yaml(dump_yaml({"a": math.nan}), "x")["a"])


def test_unquoted_values_keep_their_text():
    found = load_settings("a: 010\nb: '010'\nc: [no, 'no', 1e-7]\nd: null\ne: {f: 1}\n", "x")
    assert found == {
        "a": Word("010", 10),
        "b": "010",
        "c": [Word("no", "no"), "no", Word("1e-7", 1e-7)],
        "d": None,
        "e": {"f": 1},
    }


def test_merged_mappings_may_be_overridden():
    text = "base: &base {x: 1, y: 2}\nother:\n  <<: *base\n  y: 3\n"
    assert load_yaml(text, "f")["other"] == {"x": 1, "y": 3}
    found = load_settings("<<: {a: 1, b: 2}\nb: 030\n", "f")
    assert found == {"a": Word("1", 1), "b": Word("030", 30)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f: a is given twice, in lines 1 and 3; take one of them out"),
        ("a: {x: 1,\n  x: 2}\n", "f: x is given twice, in lines 1 and 2"),
        ("a:\n- {x: 1}\n- {'1': 1, 1: 2}\n", "f: 1 is given twice, in lines 3 and 3"),
        ("a: 1\n\tb: 2\n", "f is not YAML: a tab in line 2, where YAML wants spaces"),
        ("a:\t- 1\n\tb", "f is not YAML: a tab in line"),
        ("a: {b: no}\n", "a.b: no may mean false or the word; write false, or 'no' in quotes"),
        ("a: {b: {c: [On]}}\n", "a.b.c: On may mean true or the word; write true, or 'On' in quotes"),
        ("a: [\n", "f is not YAML: "),
        ("a: " + "[" * 50_000, "f is not YAML that can be read: its brackets are nested too deep"),
        ("a: 1\n---\nb: 2\n", "f is not YAML: "),
        ("a: {[1]: 2}\n", "f is not YAML: "),
        ("a: &x [*x]\n", "f: the value in line 1 holds itself"),
        ("a: !!python/name:os.mkdir ''\n", "f: line 1 has a value of the kind tag:yaml.org,2002:python"),
        ("a: !!timestamp 2024-05-01\n", "f: line 1 has a value of the kind tag:yaml.org,2002:timestamp"),
        ("a: !!int x\n", "f is not YAML: "),
        ("- a\n", "f must hold a mapping of settings, name: value"),
        ("1: a\n", "f must hold a mapping of settings"),
        ("", "f must hold a mapping of settings"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(ConfigurationError) as caught:
        load_settings(text, "f")
    assert message in str(caught.value)


def test_a_text_that_is_nested_itself():
    with pytest.raises(ConfigurationError, match=r"^b: no may mean false"):
        load_yaml("{b: no}", "columns")
    assert load_yaml("", "x") is None
