import copy
import json
import re

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mce_llm.data.conversations import ROLES, TRAIN_KEYS, conversation_of, stored_conversation
from mce_llm.data.errors import DataError
from mce_llm.data.records import write_jsonl
from mce_llm.data.sources import load_examples
from mce_llm.data.values import BadRecord

CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Add two numbers.", "parameters": {"type": "object"}},
}


def stored(messages, columns=None, **more):
    return stored_conversation(
        {"messages": messages, **more},
        {"messages": "messages", **{name: name for name in more}, **(columns or {})},
    )


def read(messages, **more):
    """The conversation that a template would be given."""
    return conversation_of(stored(messages, **more))


def asked(**assistant):
    return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "R", **assistant}]


@pytest.mark.parametrize("spelling", sorted(set(ROLES) - {"function_call", "tool_call"}))
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("role", "text")])
def test_every_spelling_of_every_role(spelling, keys):
    turn = {keys[0]: spelling, keys[1]: "X"}
    found = read([turn, {"role": "assistant", "content": "R"}]).messages[0]
    assert found == {"role": ROLES[spelling], "content": "X"}


@pytest.mark.parametrize("key", TRAIN_KEYS)
@pytest.mark.parametrize(
    ("value", "trained"), [(0, False), (1, True), (0.0, False), (1.0, True), (False, False), (None, True)]
)
def test_every_way_to_say_that_a_turn_is_not_trained(key, value, trained):
    assert read(asked(**{key: value})).trained == [False, trained]


@pytest.mark.parametrize(
    "spelling",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [{**CALL, "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}]},
        {"tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 3}, "id": "c1"}]},
    ],
)
def test_calls_of_tools_are_objects_however_they_are_written(spelling):
    message = read(
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": None, **spelling}]
    ).messages[1]
    assert message == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "function_call": {"name": "add", "arguments": '{"a": 2}'}},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
    ],
)
def test_the_older_forms_of_a_call(turn):
    found = read([{"role": "user", "content": "Q"}, turn, {"from": "observation", "value": "5"}])
    assert found.messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    ]
    assert found.messages[2] == {"role": "tool", "content": "5"}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
def test_tools_beside_the_messages(tools):
    assert read(asked(), tools=tools).tools == [TOOL]


def test_a_system_prompt_beside_the_messages():
    found = read(asked(), system="Be brief.")
    assert found.messages[0] == {"role": "system", "content": "Be brief."}
    assert found.trained == [False, False, True]
    assert read(asked(), system="").messages == read(asked()).messages
    same = [{"role": "system", "content": "Be brief."}, *asked()]
    assert read(same, system="Be brief.\n").messages == same
    with pytest.raises(BadRecord, match="'system' and the conversation's own system message differ"):
        stored(same, system="Be long.")


def test_parts_of_text_are_joined_and_parts_of_reasoning_kept():
    parts = [
        {"type": "thinking", "thinking": "Hm."},
        {"type": "text", "text": "One"},
        {"type": "text", "text": ", two."},
    ]
    assert read(asked(content=parts)).messages[1] == {
        "role": "assistant",
        "content": "One, two.",
        "reasoning_content": "Hm.",
    }


def test_reasoning_names_and_other_fields_are_kept_for_the_template():
    message = read(asked(reasoning_content="Hm.", name="A", content=None)).messages[1]
    assert message == {"role": "assistant", "content": "", "reasoning_content": "Hm.", "name": "A"}


def test_arguments_of_the_template():
    assert read(asked(), chat_template_kwargs={"enable_thinking": False}).template_arguments == {
        "enable_thinking": False
    }


@pytest.mark.parametrize(
    "keys", [("input", "output"), ("human", "assistant"), ("user", "assistant"), ("prompt", "response")]
)
def test_turns_that_are_a_question_with_its_answer(keys):
    turns = [dict(zip(keys, pair, strict=True)) for pair in (("Q1", "A1"), ("Q2", "A2"))]
    turns[0]["weight"] = 0
    found = read(turns)
    assert [(message["role"], message["content"]) for message in found.messages] == [
        ("user", "Q1"),
        ("assistant", "A1"),
        ("user", "Q2"),
        ("assistant", "A2"),
    ]
    assert found.trained == [False, False, False, True]


def test_the_system_prompt_of_the_first_pair_stands_in_front():
    pairs = [{"input": "Q1", "output": "A1"}, {"input": "Q2", "output": "A2", "system": ""}]
    told = [{**pairs[0], "system": "In French."}, pairs[1]]
    found = read(told)
    assert found.messages == [{"role": "system", "content": "In French."}, *read(pairs).messages]
    assert found.trained == [False, False, True, False, True]
    with pytest.raises(BadRecord, match=r"turn 2 has a 'system' of its own, 'In French\.'"):
        stored([pairs[1], told[0]])
    with pytest.raises(BadRecord, match="'system' is int 5, not a string"):
        stored([{**pairs[0], "system": 5}])
    with pytest.raises(BadRecord, match="'system' and the conversation's own system message differ"):
        stored(told, system="In German.")


def test_prompt_and_completion_as_messages_train_the_completion_alone(tmp_path):
    prompt = [
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q2"},
    ]
    write_jsonl(
        [{"prompt": prompt, "completion": [{"role": "assistant", "content": "A2"}]}], tmp_path / "a.jsonl"
    )
    found = conversation_of(load_examples(str(tmp_path / "a.jsonl"))[0])
    assert [message["content"] for message in found.messages] == ["Q1", "A1", "Q2", "A2"]
    assert found.trained == [False, False, False, True]


def test_a_table_and_lines_give_the_same(tmp_path):
    # A table gives every key of one message to all, and every argument of one call to all calls.
    other = {"type": "function", "id": "c2", "function": {"name": "neg", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, other], "weight": 0},
        {"role": "tool", "content": "5", "name": "add"},
        {"role": "assistant", "content": "R"},
    ]
    records = [{"messages": messages, "tools": [TOOL]}, {"messages": asked(), "tools": []}]
    write_jsonl(records, tmp_path / "a.jsonl")
    table = copy.deepcopy(records)
    keys = {key for record in table for message in record["messages"] for key in message}
    for record in table:
        for message in record["messages"]:
            for key in keys:
                message.setdefault(key, None)
    for call in table[0]["messages"][1]["tool_calls"]:
        for key in ("a", "b", "x"):
            call["function"]["arguments"].setdefault(key, None)
    datasets.Dataset.from_list(table).to_parquet(tmp_path / "a.parquet")
    from_lines, from_table = (load_examples(str(tmp_path / name)) for name in ("a.jsonl", "a.parquet"))
    for one, other in zip(from_lines, from_table, strict=True):
        assert conversation_of(one) == conversation_of(other)
    assert conversation_of(from_lines[0]).messages[1]["tool_calls"][0] == CALL


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"weight": 0.5}, "'weight' is 0.5; it can be 0 or false"),
        ({"weight": 0, "train": True}, "'weight' and 'train' contradict each other"),
        (
            {"content": [{"type": "image_url", "image_url": "x"}]},
            "the content has a part of type 'image_url'",
        ),
        ({"images": ["a.png"]}, "it has images, and only text is trained here"),
        ({"tool_calls": [{"function": {"arguments": {}}}]}, "the call of a tool has no name"),
        ({"tool_calls": [{"name": "f", "arguments": "{x"}]}, "the arguments of 'f' is no JSON"),
        ({"tool_calls": [{"name": "f", "arguments": "[1]"}]}, "the arguments of 'f' are [1], not an object"),
        (
            {"tool_calls": [{"name": "f", "params": {"a": 1}}]},
            "the call of 'f' has no arguments, and 'params' in their place",
        ),
        ({"train_detail": [{"train": False}]}, "'train_detail' may ask not to train the turn"),
        ({"mask": True}, "'mask' may ask not to train the turn"),
        ({"loss_scale": 0.3}, "'loss_scale' is 0.3; it can be 0 or false"),
        ({"tool_calls": 5}, "the calls of tools are 5, not a list of objects"),
        ({"content": None}, "'content' is missing"),
        ({"content": 5}, "'content' is int 5, not a string"),
        ({"content": "a\ud83d"}, "'content' holds half of a surrogate pair, \\ud83d, at character 2"),
        ({"content": "a", "name": "\ud83d"}, "a field (name) holds half of a surrogate pair"),
        ({"role": None}, "the role is None"),
        ({"role": ["user"]}, "the role is ['user']"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(turn, message):
    with pytest.raises(
        BadRecord, match=re.escape(f"message 2: {message}" if "role" not in turn else message)
    ):
        stored(asked(**turn))


def test_only_turns_of_the_assistant_are_trained():
    with pytest.raises(BadRecord, match="'weight' asks to train a message with the role user"):
        stored([{"role": "user", "content": "Q", "weight": 1}, {"role": "assistant", "content": "R"}])
    assert read(
        [{"role": "user", "content": "Q", "weight": 0}, {"role": "assistant", "content": "R"}]
    ).trained[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tools": "x"}, "'tools' is no JSON"),
        ({"tools": [5]}, "'tools' is [5], not a list of tools"),
        ({"tools": [{"parameters": {}}]}, "the description of a tool has no name"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs' is [1], not a mapping"),
        ({"system": 5}, "'system' is int 5, not a string"),
    ],
)
def test_what_stands_beside_the_messages_is_checked(more, message):
    with pytest.raises(BadRecord, match=re.escape(message)):
        stored(asked(), **more)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "role",
        "from",
        "content",
        "value",
        "weight",
        "train",
        "tool_calls",
        "function_call",
        "reasoning",
        "images",
        "x",
    ]
)


@given(st.lists(st.dictionaries(KEYS, JSON, max_size=4) | JSON, max_size=4), JSON, JSON)
def test_whatever_a_record_holds_it_is_read_or_refused(messages, tools, system):
    record = {"messages": messages, "tools": tools, "system": system}
    columns = {name: name for name in record}
    try:
        row = stored_conversation(record, columns)
    except BadRecord:
        return
    found = conversation_of(row)
    assert len(found.messages) == len(found.trained)
    assert all(isinstance(message["content"], str) for message in found.messages)


def test_a_record_is_named_by_file_and_line(tmp_path):
    write_jsonl([{"messages": asked()}], tmp_path / "a.jsonl")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(
            '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "R"}]}\n'
        )
    with pytest.raises(
        DataError, match=r"a\.jsonl: 1 of 2 records .*\n.*line 2: message 1: 'content' holds half"
    ):
        load_examples(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input"])
def test_arguments_under_every_name(key):
    calls = [{"name": "add", key: {"a": 2}}]
    found = read(
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    )
    assert found.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}


@pytest.mark.parametrize("content", [None, ""])
def test_an_empty_system_message_is_none(content):
    assert read([{"role": "system", "content": content}, *asked()]).messages == read(asked()).messages


def test_a_key_of_our_own_is_honoured_from_a_file_too():
    assert read(asked(trained=False)).trained == [False, False]
    assert read(asked(Train=False)).trained == [False, False]
