"""Counts over a data set, against those of training's own report."""

import json

import pytest

from mce_llm.commands.data_examination import examine_data
from mce_llm.data import get_prompt, load_examples, load_tokenizer, tokenize_examples, write_jsonl
from mce_llm.finetuning.settings import DataArguments


@pytest.fixture(scope="module")
def tokenizer(place):
    return load_tokenizer(place / "tokenizer")


def examined(place, tokenizer, **changes):
    settings = {"dataset": str(place / "data.jsonl"), "prompt": "plain", "max_length": 256}
    return examine_data(DataArguments(**{**settings, **changes}), tokenizer, role="train", most=1000)


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
@pytest.mark.parametrize("percentile", [50, 100])
def test_counts_are_those_of_training(overlong, percentile, place, tokenizer):
    """The limit is applied to counts here and to tokens there; both must come to the same."""
    limit = examined(place, tokenizer).lengths[percentile] - 1
    found = examined(place, tokenizer, max_length=limit, overlong=overlong)
    rows, report = tokenize_examples(
        load_examples(str(place / "data.jsonl")),
        tokenizer,
        get_prompt("plain"),
        max_length=limit,
        overlong=overlong,
    )
    assert (found.kept, found.truncated) == (report.kept, report.truncated)
    assert found.truncated > 0 or overlong == "drop"
    assert (found.dropped_overlong, found.dropped_untrained) == (
        report.dropped_overlong,
        report.dropped_untrained,
    )
    assert (found.tokens, found.trained_tokens) == (report.tokens, report.trained_tokens)
    assert found.lengths[100] == report.longest_given
    assert found.rows["input_ids"][:] == rows["input_ids"][:]
    assert found.rows["labels"][:] == rows["labels"][:]


def test_repeated_examples(place, tokenizer):
    """Those that are there before, word for word."""
    asked = [
        ("How many?", "3"),
        ("How many?", "3"),
        ("How many?", "4"),
        ("How much?", "3"),
        ("How many?", "3"),
    ]
    write_jsonl(
        [{"question": question, "response": answer} for question, answer in asked], place / "odd.jsonl"
    )
    assert examined(place, tokenizer, dataset=str(place / "odd.jsonl")).duplicates == 2


def test_packed_rows(place, tokenizer):
    found = examined(place, tokenizer, packing=True)
    assert found.packing.rows == len(found.rows) < found.kept == 40
    assert "position_ids" in found.rows.column_names


def test_conversations(place):
    tokenizer = load_tokenizer(place / "tokenizer")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "3"}]}
        for question in ("How many?", "How much?", "How many?")
    ]
    write_jsonl(rows, place / "chat.jsonl")
    found = examined(place, tokenizer, dataset=str(place / "chat.jsonl"), prompt="chat")
    assert (found.kept, found.ends_trained, found.duplicates) == (3, 3, 1)


def test_the_record_is_json(place, tokenizer):
    record = json.loads(json.dumps(examined(place, tokenizer).record()))
    assert record["kept"] == 40
    assert "rows" not in record
