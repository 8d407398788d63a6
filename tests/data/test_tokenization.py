import re

import datasets
import pytest

from mce_llm.data.errors import DataError
from mce_llm.data.prompts import IGNORE_INDEX, get_prompt
from mce_llm.data.synthetic import generate_problems
from mce_llm.data.tokenization import tokenize_examples

EXAMPLES = datasets.Dataset.from_list(
    [{"question": p["question"], "response": p["answer"]} for p in generate_problems(12)]
)


@pytest.mark.parametrize("name", ["plain", "metamath"])
def test_boundary_is_the_same_in_training_and_generation(any_tokenizer, name):
    prompt = get_prompt(name)
    tokenized, report = tokenize_examples(EXAMPLES, any_tokenizer, prompt, max_length=512)
    assert report.kept == report.examples == len(EXAMPLES)
    assert tokenized.column_names == ["input_ids", "labels"]
    for example, row in zip(EXAMPLES, tokenized, strict=True):
        first = next(i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
        generation = prompt.encode_prompt(any_tokenizer, example["question"], evaluation=True)
        assert row["input_ids"][:first] == generation[:first]
        if not prompt.evaluation_suffix:
            assert first == len(generation)
        assert row["labels"][first:] == row["input_ids"][first:]
        assert row["labels"].count(any_tokenizer.eos_token_id) == 1
        assert row["labels"][-1] == any_tokenizer.eos_token_id
        if any_tokenizer.bos_token_id is not None:
            assert row["input_ids"].count(any_tokenizer.bos_token_id) == 1


def test_report_counts(byte_level):
    prompt = get_prompt("plain")
    whole, full = tokenize_examples(EXAMPLES, byte_level, prompt, max_length=512)
    lengths = [len(ids) for ids in whole["input_ids"]]
    prompts = [len(prompt.encode_prompt(byte_level, q)) for q in EXAMPLES["question"]]
    limit = sorted(lengths)[len(lengths) // 2]
    cut, report = tokenize_examples(EXAMPLES, byte_level, prompt, max_length=limit)
    assert full.truncated == full.dropped_overlong == full.dropped_untrained == 0
    assert full.tokens == sum(lengths)
    assert full.trained_tokens == sum(lengths) - sum(prompts)
    assert full.mean_length == pytest.approx(sum(lengths) / len(lengths))
    lost = sum(p >= limit for p in prompts)
    assert report.truncated == sum(n > limit for n in lengths) - lost
    assert report.dropped_untrained == lost
    assert report.kept == len(cut) == len(EXAMPLES) - lost
    assert report.longest == limit
    assert report.longest_given == full.longest == max(lengths)
    kept = [ids for ids, p in zip(whole["input_ids"], prompts, strict=True) if p < limit]
    assert [list(ids) for ids in cut["input_ids"]] == [ids[:limit] for ids in kept]


def test_overlong_examples_can_be_dropped_instead(byte_level):
    whole, _ = tokenize_examples(EXAMPLES, byte_level, get_prompt("plain"), max_length=512)
    limit = sorted(len(ids) for ids in whole["input_ids"])[6]
    kept, report = tokenize_examples(
        EXAMPLES, byte_level, get_prompt("plain"), max_length=limit, overlong="drop"
    )
    assert kept["input_ids"][:] == [ids for ids in whole["input_ids"] if len(ids) <= limit]
    assert report.truncated == report.dropped_untrained == 0
    assert report.dropped_overlong == len(EXAMPLES) - len(kept) > 0


def test_an_example_that_lost_its_whole_completion_is_dropped(byte_level):
    rows = datasets.Dataset.from_list(
        [{"question": "x" * 100, "response": "2"}, {"question": "1+1?", "response": "2"}]
    )
    kept, report = tokenize_examples(rows, byte_level, get_prompt("plain"), max_length=30)
    assert (len(kept), report.dropped_untrained, report.truncated) == (1, 1, 0)
    assert "dropped, nothing to train  1" in str(report)
    assert str(report).startswith("examples                   1 of 2\n")


def test_conversations_and_pairs_agree(chat_tokenizer):
    prompt = get_prompt("chat")
    messages = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": r}]}
        for q, r in zip(EXAMPLES["question"], EXAMPLES["response"], strict=True)
    ]
    pairs, _ = tokenize_examples(EXAMPLES, chat_tokenizer, prompt, max_length=512)
    talks, _ = tokenize_examples(datasets.Dataset.from_list(messages), chat_tokenizer, prompt, max_length=512)
    assert pairs.to_list() == talks.to_list()


def test_processes_do_not_change_the_result(sentencepiece):
    one, report = tokenize_examples(EXAMPLES, sentencepiece, get_prompt("plain"), max_length=60)
    two, same = tokenize_examples(EXAMPLES, sentencepiece, get_prompt("plain"), max_length=60, num_proc=2)
    assert one.to_list() == two.to_list()
    assert report == same


def test_the_result_is_cached_and_a_change_of_settings_is_noticed(byte_level, tmp_path):
    EXAMPLES.save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(tmp_path / "saved")

    def cached(**options):
        tokenize_examples(saved, byte_level, get_prompt("plain"), **options)
        return len(list((tmp_path / "saved").glob("cache-*")))

    assert cached(max_length=64) == 1
    assert cached(max_length=64) == 1
    assert cached(max_length=65) == 2


@pytest.mark.parametrize(
    ("rows", "prompt", "options", "message"),
    [
        ([{"text": "x"}], "plain", {}, "expected the columns question and response, or messages, found text"),
        ([], "plain", {}, "there is no example to tokenise"),
        (EXAMPLES, "plain", {"max_length": 1}, "max_length must be at least 2"),
        (EXAMPLES, "plain", {"overlong": "split"}, "overlong must be 'truncate' or 'drop', got 'split'"),
        (EXAMPLES, "plain", {"max_length": 4}, "none of the 12 examples can be used with max_length=4"),
        (EXAMPLES, "plain", {"max_length": 4, "overlong": "drop"}, "12 are too long and were dropped"),
        (EXAMPLES, "chat", {}, "record 1: prompt 'chat' needs a chat template"),
        (
            [{"messages": [{"role": "assistant", "content": "x"}]}],
            "plain",
            {},
            "record 1: the records are conversations (messages, or pairs with a system prompt or a history)",
        ),
    ],
)
def test_bad_input(byte_level, rows, prompt, options, message):
    rows = datasets.Dataset.from_list(rows) if isinstance(rows, list) else rows
    with pytest.raises(DataError, match=re.escape(message)):
        tokenize_examples(rows, byte_level, get_prompt(prompt), **({"max_length": 64} | options))


def test_a_bad_record_deep_in_the_data_is_named(chat_tokenizer):
    good = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "R"}]
    rows = datasets.Dataset.from_list([{"messages": good}] * 3 + [{"messages": good[:1]}])
    with pytest.raises(DataError, match="record 4: the conversation has no assistant turn"):
        tokenize_examples(rows, chat_tokenizer, get_prompt("chat"), max_length=64)
