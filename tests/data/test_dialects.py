"""Chat templates of real models, those that TRL brings with it: every kind of conversation is trained or refused, and what is
left out is said."""

import re
from importlib import resources

import pytest
from transformers import PreTrainedTokenizerFast

from mce_llm.data.conversations import conversation_of, stored_conversation
from mce_llm.data.dialects import Dialect, dialect_of
from mce_llm.data.errors import DataError
from mce_llm.data.lost_text import lost_texts
from mce_llm.data.prompts import IGNORE_INDEX, get_prompt

pytest.importorskip("trl")
CHAT = get_prompt("chat")
TEMPLATES = {
    path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8")
    for path in sorted((resources.files("trl") / "chat_templates").iterdir(), key=lambda path: path.name)
    if path.name.endswith(".jinja")
    and not path.name.endswith("_training.jinja")  # TRL's own changes of the others
}
_SPECIAL = re.compile(
    r"<\|[\w/ -]+\|>|<｜[^<>]{1,30}｜>|<(?:start|end)_of_turn>|<(?:turn|channel)\|>|<\|(?:turn|channel)>|<end_of_utterance>"
)
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds two numbers.", "parameters": {"type": "object"}},
    }
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


CALLING = [
    user("Q one"),
    assistant(
        None, tool_calls=[{"id": "call00001", "function": {"name": "add", "arguments": {"a": "seven"}}}]
    ),
    {"role": "tool", "content": "five", "tool_call_id": "call00001", "name": "add"},
    assistant("R one"),
]
CASES = {
    "single": ({"messages": [user("Q one"), assistant("R one")]}, "all"),
    "system": (
        {"messages": [{"role": "system", "content": "S one"}, user("Q one"), assistant("R one")]},
        "all",
    ),
    "developer": (
        {"messages": [{"role": "developer", "content": "D one"}, user("Q one"), assistant("R one")]},
        "all",
    ),
    "turns": ({"messages": [user("Q one"), assistant("R one"), user("Q two"), assistant("R two")]}, "all"),
    "each": ({"messages": [user("Q one"), assistant("R one"), user("Q two"), assistant("R two")]}, "each"),
    "reasoning": ({"messages": [user("Q one"), assistant("R one", reasoning="T one")]}, "all"),
    "inline": ({"messages": [user("Q one"), assistant("<think>\nT one\n</think>\n\nR one")]}, "all"),
    "tools": ({"messages": CALLING, "tools": TOOLS}, "each"),
    "first": ({"messages": [assistant("R none"), user("Q one"), assistant("R one")]}, "all"),
}


@pytest.fixture(scope="module")
def speak(byte_level):
    """A tokenizer with a template, and with its special tokens."""

    def make(template):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=type(byte_level.backend_tokenizer).from_str(
                byte_level.backend_tokenizer.to_str()
            ),
            eos_token=byte_level.eos_token,
            bos_token="<s>",
        )
        tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(_SPECIAL.findall(template)))})
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_trained_is_what_was_said_or_it_is_refused(name, speak):
    tokenizer = speak(TEMPLATES[name])
    outcomes = {}
    for case, (record, turns) in CASES.items():
        conversation = conversation_of(stored_conversation(record, {key: key for key in record}))
        try:
            made = CHAT.encode_turns(tokenizer, conversation, turns)
        except DataError as error:
            outcomes[case] = str(error)
            continue
        places = [place for place, trained in enumerate(conversation.trained) if trained]
        lost = {kind for kind, _ in lost_texts(conversation, [row.text for row in made], places[-1])}
        outcomes[case] = lost
        for row in made:
            trained = [label for label in row.labels if label != IGNORE_INDEX]
            assert trained[-1] in tokenizer.all_special_ids, case
        # Nothing of a conversation is without a mention: it is in the text, or among what is lost.
        whole = "".join(row.text for row in made)
        for message in conversation.messages:
            assert (
                message["content"].split("</think>")[-1].strip() in whole
                or f"{message['role']} message" in lost
            )
        answer = tokenizer.decode([label for label in made[-1].labels if label != IGNORE_INDEX])
        assert "R one" in answer or "R two" in answer or "assistant message" in lost
        assert "Q " not in answer
    # Whatever a template has no place for, it trains a question with its answer, or says what is in the way.
    single = outcomes["single"]
    assert single == set() or "opens generation with" in single
    assert outcomes["each"] == single or "opens generation with" in outcomes["each"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_generation_stops_where_training_ends_a_turn_also_where_it_is_not_trained(name, speak):
    tokenizer = speak(TEMPLATES[name])
    ends = CHAT.end_token_ids(tokenizer)
    assert set(ends) <= set(tokenizer.all_special_ids)
    for record in (CASES["single"][0], CASES["reasoning"][0]):
        conversation = conversation_of(stored_conversation(record, {"messages": "messages"}))
        try:
            (row,) = CHAT.encode_turns(tokenizer, conversation)
        except DataError:
            continue
        assert [label for label in row.labels if label != IGNORE_INDEX][-1] == ends[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smolvlm", Dialect(parts=True, developer=False)),
        ("deepseekv3", Dialect(text_arguments=True, developer=False)),
        ("qwen3", Dialect(reasoning="reasoning_content", developer=False)),
        ("gptoss", Dialect(reasoning="thinking")),
        ("llama3_1", Dialect(developer=False)),
    ],
)
def test_what_templates_expect(name, expected, speak):
    assert dialect_of(speak(TEMPLATES[name])) == expected


def test_the_close_of_a_text_is_not_the_end_of_a_turn(speak):
    tokenizer = speak(TEMPLATES["phi3"])
    assert tokenizer.apply_chat_template(CASES["single"][0]["messages"], tokenize=False).endswith(
        f"R one<|end|>\n{tokenizer.eos_token}"
    )
    ids, labels = CHAT.encode_conversation(tokenizer, CASES["turns"][0]["messages"])
    trained = [label for label in labels if label != IGNORE_INDEX]
    assert tokenizer.decode(trained) == "R one<|end|>R two<|end|>"
    assert tokenizer.eos_token_id not in ids


def test_reasoning_can_be_switched_off_where_generation_opens_with_it(speak):
    from dataclasses import replace

    tokenizer = speak(TEMPLATES["nemotron_3_nano"])
    messages = CASES["single"][0]["messages"]
    with pytest.raises(DataError, match="enable_thinking: false"):
        CHAT.encode_conversation(tokenizer, messages)
    silent = replace(CHAT, template_arguments={"enable_thinking": False})
    _, labels = silent.encode_conversation(tokenizer, messages)
    assert tokenizer.decode([label for label in labels if label != IGNORE_INDEX]) == "R one<|im_end|>"


def test_templates_that_read_the_clock_write_a_day_that_is_said(speak):
    dated = {name for name, text in TEMPLATES.items() if "strftime_now" in text}
    assert {"gptoss", "llama3_2"} <= dated
    for name in dated:
        tokenizer = speak(TEMPLATES[name])
        assert str(CHAT.written_day(tokenizer)) == "2024-07-26"
        assert "2024" in tokenizer.decode(CHAT.encode_prompt(tokenizer, "Q one"))
