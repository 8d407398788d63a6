import re
from dataclasses import replace

import pytest

from mce_llm.data.errors import DataError
from mce_llm.data.prompts import PROMPTS, PromptTemplate, get_prompt

QUESTION = "Anna has 7 apples and {finds} 5 more. How many?"
RESPONSE = "7 + 5 = 12\n#### 12"


def test_metamath_wording_is_exact():
    prompt = get_prompt("metamath")
    assert prompt.training_prompt("2+2?") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n2+2?\n\n### Response:"
    )
    assert prompt.evaluation_prompt("2+2?") == prompt.training_prompt("2+2?") + " Let's think step by step."
    assert prompt.completion_prefix == ""


def test_plain_wording():
    prompt = get_prompt("plain")
    assert prompt.training_prompt("2+2?") == "Question: 2+2?\nAnswer:" == prompt.evaluation_prompt("2+2?")
    assert prompt.stop == ("\nQuestion:",)


def test_braces_in_question_and_template_are_plain_text():
    prompt = PromptTemplate("boxed", "{question} Put it in \\boxed{}.")
    assert prompt.training_prompt("{x} {question}") == "{x} {question} Put it in \\boxed{}."


@pytest.mark.parametrize("name", ["plain", "metamath"])
def test_evaluation_ids_begin_with_the_training_ids(any_tokenizer, name):
    prompt = get_prompt(name)
    training = prompt.encode_prompt(any_tokenizer, QUESTION)
    evaluation = prompt.encode_prompt(any_tokenizer, QUESTION, evaluation=True)
    assert evaluation[: len(training)] == training
    assert (evaluation == training) == (not prompt.evaluation_suffix)
    if any_tokenizer.bos_token_id is not None:
        assert evaluation.count(any_tokenizer.bos_token_id) == 1
        assert evaluation[0] == any_tokenizer.bos_token_id
    text = any_tokenizer.decode(evaluation, skip_special_tokens=True)
    assert text == prompt.evaluation_prompt(QUESTION)


@pytest.mark.parametrize("name", ["plain", "metamath"])
def test_prompt_and_completion_decode_to_the_text(any_tokenizer, name):
    prompt = get_prompt(name)
    ids = prompt.encode_prompt(any_tokenizer, QUESTION) + prompt.encode_completion(any_tokenizer, RESPONSE)
    text = any_tokenizer.decode(ids, skip_special_tokens=True)
    assert text == prompt.training_prompt(QUESTION) + prompt.completion_prefix + RESPONSE


@pytest.mark.parametrize("response", [RESPONSE, RESPONSE + "{eos}", "stop {eos} here"])
def test_completion_ends_in_eos_exactly_once(any_tokenizer, response):
    ids = get_prompt("plain").encode_completion(
        any_tokenizer, response.replace("{eos}", any_tokenizer.eos_token)
    )
    assert ids[-1] == any_tokenizer.eos_token_id
    assert ids.count(any_tokenizer.eos_token_id) == 1
    if any_tokenizer.bos_token_id is not None:
        assert any_tokenizer.bos_token_id not in ids


def test_end_token_ids(any_tokenizer, chat_tokenizer, llama_chat_tokenizer):
    assert get_prompt("plain").end_token_ids(any_tokenizer) == [any_tokenizer.eos_token_id]
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert get_prompt("chat").end_token_ids(chat_tokenizer) == [end, chat_tokenizer.eos_token_id]
    assert get_prompt("chat").end_token_ids(llama_chat_tokenizer) == [llama_chat_tokenizer.eos_token_id]


@pytest.mark.parametrize("name", list(PROMPTS))
def test_presets_are_registered_under_their_name(name):
    assert get_prompt(name).name == name


def test_templates_are_equal_by_value_and_hashable():
    assert PromptTemplate("a", "{question}", stop=["x"]) == PromptTemplate("a", "{question}", stop=("x",))
    assert len(set(PROMPTS.values())) == len(PROMPTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_prompt("metamaht"), "unknown prompt 'metamaht' (did you mean 'metamath'?)"),
        (lambda: get_prompt("zzz"), "choose one of metamath, plain, chat"),
        (lambda: PromptTemplate("x", "no place"), "must contain {question} exactly once, found 0"),
        (lambda: PromptTemplate("x", "{question}{question}"), "found 2 times"),
        (lambda: PromptTemplate("x", "{question}", stop="\n"), "must be a tuple of strings"),
        (lambda: PromptTemplate("x", "{question}", stop=("",)), "cut every generation at once"),
        (
            lambda: PromptTemplate("x", "{question}", system="Be brief."),
            "a system message needs a chat template",
        ),
        (
            lambda: PromptTemplate("x", "{question}", template_arguments={"think": True}),
            "chat_template_kwargs are for a chat template",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(DataError, match=re.escape(message)):
        make()


def test_tokenizer_without_eos(byte_level):
    tokenizer = type(byte_level)(tokenizer_object=byte_level.backend_tokenizer)
    with pytest.raises(DataError, match=r"no EOS token.*set tokenizer\.eos_token"):
        get_prompt("plain").encode_completion(tokenizer, "x")


def test_conversations_need_the_chat_prompt(chat_tokenizer):
    with pytest.raises(
        DataError, match="the prompt 'plain' is for a question and a response; use the prompt 'chat'"
    ):
        get_prompt("plain").encode_conversation(chat_tokenizer, [{"role": "assistant", "content": "x"}])


SYSTEMLESS = (
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if think %}<think>{% endif %}{% endif %}"
)


def test_what_a_template_has_no_place_for_is_refused(chat_tokenizer):
    chat = get_prompt("chat")
    replace(chat, system="Be brief.").check(chat_tokenizer)
    chat_tokenizer.chat_template = SYSTEMLESS
    replace(chat, template_arguments={"think": True}).check(chat_tokenizer)
    with pytest.raises(DataError, match="system_prompt: the chat template leaves a system message out"):
        replace(chat, system="Be brief.").check(chat_tokenizer)
    with pytest.raises(DataError, match=r"reads no 'thnk'"):
        replace(chat, template_arguments={"thnk": True}).check(chat_tokenizer)
    with pytest.raises(DataError, match="cannot set 'add_generation_prompt'"):
        replace(chat, template_arguments={"add_generation_prompt": True}).check(chat_tokenizer)


def test_a_record_has_its_own_arguments_checked(chat_tokenizer):
    chat_tokenizer.chat_template = SYSTEMLESS
    chat = get_prompt("chat")
    for arguments, message in (
        ({"thnk": True}, "reads no 'thnk'"),
        ({"think": "false"}, "is the word 'false'"),
    ):
        conversation = replace(chat.pair("Q", "R"), template_arguments=arguments)
        with pytest.raises(DataError, match=message):
            chat.encode_turns(chat_tokenizer, conversation)


@pytest.mark.parametrize("name", ["plain", "metamath"])
def test_a_pair_is_prompt_and_completion(any_tokenizer, name):
    template = get_prompt(name)
    pair = template.encode_pair(any_tokenizer, "How many?", "It is 18.\n#### 18")
    assert pair.prompt_ids == template.encode_prompt(any_tokenizer, "How many?")
    assert pair.completion_ids == template.encode_completion(any_tokenizer, "It is 18.\n#### 18")
    assert pair.completion == template.completion_prefix + "It is 18.\n#### 18"
    assert len(pair.places) == len(pair.completion_ids) - 1  # EOS stands nowhere in the text
    longer = template.encode_pair(any_tokenizer, "How many?", "18", evaluation=True)
    assert longer.prompt_ids == template.encode_prompt(any_tokenizer, "How many?", evaluation=True)


def test_a_pair_of_a_chat_behind_worked_examples(chat_tokenizer):
    chat = replace(get_prompt("chat"), shots=(("Q1", "A1"),), system="Be brief.")
    pair = chat.encode_pair(chat_tokenizer, "Q2", "A2")
    assert chat_tokenizer.decode(pair.prompt_ids) == chat_tokenizer.decode(
        chat.encode_prompt(chat_tokenizer, "Q2")
    )
    assert pair.completion_ids == get_prompt("chat").encode_completion(chat_tokenizer, "A2")
    assert pair.completion.startswith("A2")
