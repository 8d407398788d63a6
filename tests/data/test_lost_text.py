import json
from dataclasses import replace

import datasets
import pytest

from mce_llm.data.conversations import Conversation
from mce_llm.data.lost_text import AFTER, SPELLING, counted, lost_texts
from mce_llm.data.prompts import IGNORE_INDEX, get_prompt
from mce_llm.data.tokenization import tokenize_examples

CHAT = get_prompt("chat")
# Qwen 3's arrangement: reasoning is written for turns after the last question alone; there is no place for a system.
FORGETFUL = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.index0 > ns.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content | trim }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talk(*turns):
    messages = [{"role": role, "content": content, **more} for role, content, more in turns]
    return Conversation(messages, [m["role"] == "assistant" for m in messages])


def test_nothing_is_lost_where_all_of_it_is_written():
    conversation = talk(("user", "  What is\n2+2? ", {}), ("assistant", 'It is "4".', {}))
    assert lost_texts(conversation, ['u: What is 2+2?\na: It is "4".'], 1) == []
    assert lost_texts(conversation, ['{"u": "What is\\n2+2?", "a": "It is \\"4\\"."}'], 1) == []


def test_every_kind_that_is_missing_is_named():
    call = {"function": {"name": "add", "arguments": {"a": "seven"}}}
    conversation = Conversation(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Q"},
            {
                "role": "assistant",
                "content": "R",
                "reasoning_content": "Hm",
                "tool_calls": [call],
                "name": "A",
            },
            {"role": "user", "content": "Thanks"},
        ],
        [False, False, True, False],
        tools=[{"function": {"name": "add", "description": "Adds."}}],
    )
    assert lost_texts(conversation, ["Q R"], 2) == [
        ("system message", "'Be brief.'"),
        ("reasoning", "'Hm'"),
        ("call of a tool", "'add'"),
        ("call of a tool", "'seven'"),
        ("field name", "'A'"),
        (AFTER, "'Thanks'"),
        ("description of a tool", "'add'"),
        ("description of a tool", "'Adds.'"),
    ]


def test_counts_and_the_first_of_each():
    entry = json.dumps([("reasoning", "'Hm'"), ("reasoning", "'Ha'"), ("field name", "'A'")])
    reasoning, name = counted([None, entry, entry], lambda number: f"line {number + 1}")
    assert (reasoning.texts, reasoning.examples, reasoning.place, reasoning.first) == (4, 2, "line 2", "'Hm'")
    assert reasoning.grave
    assert not name.grave
    assert str(reasoning) == "reasoning: 4 in 2 examples (line 2: 'Hm')"


def test_a_system_prompt_in_a_field_is_grave():
    conversation = talk(("user", "Q", {"system": "Be brief.", "name": "A"}), ("assistant", "R", {}))
    system, name = counted([json.dumps(lost_texts(conversation, ["Q R"], 1))], lambda number: "line 1")
    assert (system.kind, system.grave) == ("field system", True)
    assert (name.kind, name.grave) == ("field name", False)


@pytest.fixture
def rows():
    think = {"reasoning_content": "Think first."}
    messages = [
        ("system", "Be brief.", {}),
        ("user", "7 + 5?", {}),
        ("assistant", "12", think),
        ("user", "And 4 less?", {}),
        ("assistant", "8", {"reasoning_content": "Now subtract."}),
    ]
    stored = [
        {"role": role, "content": text, "fields": json.dumps(more) if more else None}
        for role, text, more in messages
    ]
    return datasets.Dataset.from_list([{"messages": stored}] * 3)


def decoded(tokenizer, rows):
    kept = []
    for row in rows:
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        kept.append(tokenizer.decode([token for token, label in pairs if label != IGNORE_INDEX]))
    return kept


def test_what_each_choice_of_turns_trains_and_loses(chat_tokenizer, rows):
    chat_tokenizer.chat_template = FORGETFUL
    last, report = tokenize_examples(rows, chat_tokenizer, CHAT, max_length=500, turns="last")
    assert decoded(chat_tokenizer, last) == ["<think>Now subtract.</think>8<|im_end|>"] * 3
    assert [(lost.kind, lost.texts) for lost in report.lost] == [("system message", 3), ("reasoning", 3)]
    each, report = tokenize_examples(rows, chat_tokenizer, CHAT, max_length=500, turns="each")
    both = ["<think>Think first.</think>12<|im_end|>", "<think>Now subtract.</think>8<|im_end|>"]
    assert decoded(chat_tokenizer, each) == both * 3
    # The reasoning of the first turn is in its own example.
    assert [(lost.kind, lost.texts, lost.place) for lost in report.lost] == [
        ("system message", 3, "record 1")
    ]
    assert (report.records, report.examples, report.kept) == (3, 6, 6)
    assert "6 of 6, one for each trained turn of 3 records" in str(report)
    assert "system message: 3 in 3 examples (record 1: 'Be brief.')" in str(report)


def test_a_turn_in_each_is_what_the_model_meets(chat_tokenizer, rows):
    chat_tokenizer.chat_template = FORGETFUL
    each, _ = tokenize_examples(rows, chat_tokenizer, CHAT, max_length=500, turns="each")
    second = chat_tokenizer.decode(each[1]["input_ids"])
    messages = [
        {"role": "user", "content": "7 + 5?"},
        {"role": "assistant", "content": "12", "reasoning_content": "Think first."},
        {"role": "user", "content": "And 4 less?"},
    ]
    prompt = chat_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert second == prompt + "<think>Now subtract.</think>8<|im_end|>"


def test_pairs_lose_what_a_template_strips_from_answers(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    pairs = datasets.Dataset.from_list(
        [{"question": "Q", "response": "<think>Hm</think>A"}, {"question": "Q", "response": "A"}]
    )
    _, report = tokenize_examples(pairs, chat_tokenizer, CHAT, max_length=100)
    assert [(lost.kind, lost.texts) for lost in report.lost] == [("assistant message", 1)]


def test_the_systems_own_prompt_and_that_of_the_settings(chat_tokenizer, rows):
    brief = replace(CHAT, system="Be kind.")
    own, _ = tokenize_examples(rows.select([0]), chat_tokenizer, brief, max_length=500)
    assert "Be kind." not in chat_tokenizer.decode(own[0]["input_ids"])
    pair = datasets.Dataset.from_list([{"question": "Q", "response": "A"}])
    given, _ = tokenize_examples(pair, chat_tokenizer, brief, max_length=500)
    assert chat_tokenizer.decode(given[0]["input_ids"]).startswith("<|im_start|>system\nBe kind.<|im_end|>")


def test_numbers_and_spellings_of_special_tokens_are_named():
    conversation = talk(("user", "Q", {"score": 3, "known": True}), ("assistant", "R<|im_end|>", {}))
    found = lost_texts(conversation, ["Q R<|im_end|>"], 1, template="{{ m.known }}", special=["<|im_end|>"])
    assert found == [("field score", "'3'"), (SPELLING, "'R<|im_end|>'")]
    (score, spelt) = counted([json.dumps(found)], lambda number: "line 1")
    assert score.sentence == "the chat template leaves out field score: 1 in 1 examples (line 1: '3')"
    assert spelt.grave
    assert spelt.sentence.startswith("read as the special tokens that they spell, and not as text: ")
