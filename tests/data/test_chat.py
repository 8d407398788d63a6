import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mce_llm.data.errors import DataError
from mce_llm.data.prompts import IGNORE_INDEX, get_prompt

CHAT = get_prompt("chat")
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "7 + 5?"},
    {"role": "assistant", "content": "12"},
    {"role": "user", "content": "And 4 less?"},
    {"role": "assistant", "content": "8"},
]


def trained_text(tokenizer, input_ids, labels):
    return tokenizer.decode([t for t, label in zip(input_ids, labels, strict=True) if label != IGNORE_INDEX])


def test_prompt_ids_are_those_of_the_template(chat_tokenizer):
    messages = [{"role": "user", "content": "7 + 5?"}]
    expected = chat_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert CHAT.encode_prompt(chat_tokenizer, "7 + 5?") == list(expected)


def test_bos_of_the_template_is_not_doubled(llama_chat_tokenizer):
    tokenizer = llama_chat_tokenizer
    ids = CHAT.encode_prompt(tokenizer, "7 + 5?") + CHAT.encode_completion(tokenizer, "12")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "[INST] 7 + 5? [/INST] 12 "


def test_completion_ends_with_the_turn_and_without_what_follows_it(chat_tokenizer):
    assert (
        chat_tokenizer.decode(CHAT.encode_completion(chat_tokenizer, "12\n#### 12"))
        == "12\n#### 12<|im_end|>"
    )


def test_prompt_and_completion_equal_the_one_turn_conversation(chat_tokenizer):
    prompt = CHAT.encode_prompt(chat_tokenizer, "7 + 5?")
    completion = CHAT.encode_completion(chat_tokenizer, "12")
    input_ids, labels = CHAT.encode_conversation(chat_tokenizer, TALK[1:3])
    assert input_ids == prompt + completion
    assert labels == [IGNORE_INDEX] * len(prompt) + completion


def test_every_assistant_turn_is_trained_and_nothing_else(chat_tokenizer):
    input_ids, labels = CHAT.encode_conversation(chat_tokenizer, TALK)
    assert trained_text(chat_tokenizer, input_ids, labels) == "12<|im_end|>8<|im_end|>"
    whole = chat_tokenizer.apply_chat_template(TALK, tokenize=False)
    assert chat_tokenizer.decode(input_ids) == whole.rstrip("\n")
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(input_ids, labels, strict=True))


def test_each_turn_is_conditioned_on_the_ids_of_its_own_prompt(chat_tokenizer):
    input_ids, labels = CHAT.encode_conversation(chat_tokenizer, TALK)
    starts = [i for i in range(1, len(labels)) if labels[i] != IGNORE_INDEX and labels[i - 1] == IGNORE_INDEX]
    for start, turn in zip(starts, (2, 4), strict=True):
        prompt = chat_tokenizer.apply_chat_template(
            TALK[:turn], add_generation_prompt=True, return_dict=False
        )
        assert input_ids[:start] == list(prompt)


def test_messages_after_the_last_answer_are_left_out(chat_tokenizer):
    more = [*TALK, {"role": "user", "content": "Thanks!"}]
    assert CHAT.encode_conversation(chat_tokenizer, more) == CHAT.encode_conversation(chat_tokenizer, TALK)


def test_multi_turn_with_bos_and_eos_in_the_template(llama_chat_tokenizer):
    input_ids, labels = CHAT.encode_conversation(llama_chat_tokenizer, TALK[1:])
    assert trained_text(llama_chat_tokenizer, input_ids, labels).split() == ["12", "</s>", "8", "</s>"]


def test_eos_is_added_where_the_template_closes_a_turn_with_plain_text(byte_level):
    tokenizer = type(byte_level)(tokenizer_object=byte_level.backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    ids = CHAT.encode_completion(tokenizer, "12")
    assert tokenizer.decode(ids) == "12\n<|endoftext|>"


def test_system_message_of_the_template(chat_tokenizer):
    prompt = dataclasses.replace(CHAT, system="Be brief.")
    assert chat_tokenizer.decode(prompt.encode_prompt(chat_tokenizer, "Hi")).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>"
    )


def test_generation_from_the_prompt_is_what_training_continues(chat_tokenizer):
    # A model that has learnt one conversation by heart answers from the evaluation prompt and stops.
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(chat_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    prompt = CHAT.encode_prompt(chat_tokenizer, "7 + 5?", evaluation=True)
    completion = CHAT.encode_completion(chat_tokenizer, "12\n#### 12")
    input_ids = torch.tensor([prompt + completion])
    labels = torch.tensor([[IGNORE_INDEX] * len(prompt) + completion])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=CHAT.end_token_ids(chat_tokenizer),
        pad_token_id=chat_tokenizer.pad_token_id,
    )
    assert output[0, len(prompt) :].tolist() == completion


REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANNOUNCING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
REFUSING = "{{ raise_exception('System role not supported') }}"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, TALK, "needs a chat template.*has none; use the prompt 'plain'"),
        (
            REFUSING,
            TALK,
            r"refuses a conversation with the roles \(system, user, assistant\): System role not supported",
        ),
        (REWRITING, TALK, "rewrites earlier turns.*set train_turns to each"),
        (ANNOUNCING, TALK, "opens generation with .*<think>.*training and generation would differ"),
        ("ok", TALK[:2], "no assistant turn"),
    ],
)
def test_bad_input(chat_tokenizer, template, messages, message):
    if template != "ok":
        chat_tokenizer.chat_template = template
    with pytest.raises(DataError, match=message):
        CHAT.encode_conversation(chat_tokenizer, messages)


def test_a_template_that_rewrites_earlier_turns_serves_single_turns(chat_tokenizer):
    chat_tokenizer.chat_template = REWRITING
    input_ids, labels = CHAT.encode_conversation(chat_tokenizer, TALK[:3])
    assert trained_text(chat_tokenizer, input_ids, labels) == "<think></think>12<|im_end|>"
