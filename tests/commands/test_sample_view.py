"""Trained tokens stand in brackets and in colour."""

import pytest

from mce_llm.commands.sample_view import marked
from mce_llm.data import get_prompt, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(place):
    return load_tokenizer(place / "tokenizer")


def test_the_brackets_hold_the_completion(tokenizer):
    prompt = get_prompt("plain")
    before = prompt.encode_prompt(tokenizer, "How many?")
    after = prompt.encode_completion(tokenizer, "3 + 5 = 8")
    text = marked(tokenizer, before + after, [-100] * len(before) + after)
    assert text.plain == "Question: How many?\nAnswer:⟦ 3 + 5 = 8<|endoftext|>⟧"
    colours = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert "green" in colours[" 3 + 5 = 8<|endoftext|>"]
    assert "green" not in colours["Question: How many?\nAnswer:"]


def test_runs_apart_are_marked_apart_and_the_first_label_is_never_used(tokenizer):
    ids = tokenizer("a b c d")["input_ids"][:4]
    labels = [ids[0], ids[1], -100, ids[3]]
    words = [tokenizer.decode([token]) for token in ids]
    assert marked(tokenizer, ids, labels).plain == f"{words[0]}⟦{words[1]}⟧{words[2]}⟦{words[3]}⟧"


def test_long_rows_show_both_ends(tokenizer):
    ids = tokenizer("one two three four five six seven eight")["input_ids"]
    text = marked(tokenizer, ids, [-100] * len(ids), most=4).plain
    assert f"… {len(ids) - 4} tokens …" in text
    assert text.startswith(tokenizer.decode(ids[:2]))
    assert text.endswith(tokenizer.decode(ids[-2:]))
