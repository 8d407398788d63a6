"""Conversations as people store them, brought into one form.

Messages have a role and a content; what else they carry (calls of tools, reasoning, names) is kept for the chat template
as JSON, and whether an assistant's turn is trained is a flag. Conversations come as OpenAI's ``messages``, as ShareGPT's
``conversations``, as a prompt and a completion that are lists of messages, or as a pair with a system prompt and a history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mce_llm.data.errors import shorten
from mce_llm.data.values import BadRecord, json_text, read_json, switch_of, text_of, whole_text, without_nulls

# As a file names it → as chat templates name it. A `function_call` is an assistant's turn that calls a tool.
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
# Keys that say whether a turn is trained: OpenAI's weight, axolotl's train, ms-swift's loss, and their relatives.
TRAIN_KEYS = (
    *("weight", "train", "training", "trainable", "trained", "is_trained", "train_on_turn", "learn"),
    *("loss", "loss_mask", "loss_masks", "loss_scale", "loss_weight", "train_mask"),
)
# Keys that say something of the kind, and not what: which way round, or that a part of the turn is meant.
_UNCLEAR_TRAIN_KEYS = (
    "mask",
    "masks",
    "masked",
    "ignore",
    "label",
    "labels",
    "train_detail",
    "training_detail",
)
# Under which names files keep the arguments of a call.
_ARGUMENTS = ("arguments", "parameters", "args", "input")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_CALL_ROLES = ("function_call", "tool_call")
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value", "text")
_TURN_PAIRS = (
    *(("input", "output"), ("human", "assistant"), ("user", "assistant")),
    *(("prompt", "response"), ("question", "answer")),
)
_NOT_TEXT = ("images", "image", "videos", "video", "audios", "audio")
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Conversation:
    """A conversation, ready for a chat template.

    Attributes:
        messages: ``role``, ``content`` and what else the template may read, in order.
        trained: Of each message, whether it is trained; only an assistant's can be.
        tools: The functions that the model may call, as JSON schemas.
        template_arguments: What this record passes to the template besides.
    """

    messages: list[dict[str, Any]]
    trained: list[bool]
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)

    def ending_at(self, place: int) -> Conversation:
        """The conversation up to the message of this number (from 0), which alone is trained."""
        trained = [number == place for number in range(place + 1)]
        return replace(self, messages=self.messages[: place + 1], trained=trained)


def stored_conversation(
    record: Mapping[str, Any], columns: Mapping[str, str], *, table: bool = False
) -> dict[str, Any]:
    """A record as a row of a data set: ``messages``, and what else there is.

    Args:
        record: As it was read.
        columns: Role → column: messages, or prompt and completion, or question and response; perhaps system, history,
            tools and chat_template_kwargs.
        table: It comes from a table, in which null stands for a key that the record has not.

    Returns:
        ``messages``: a role and a content each, ``trained: False`` where an assistant's turn is not trained, and
        ``fields``, JSON of all else that the message carries. ``tools`` and ``chat_template_kwargs``, as JSON.

    Raises:
        BadRecord: It is no conversation, or holds what cannot be honoured.
    """
    if table:
        record = without_nulls(record)
    messages = _messages_of(record, columns)
    if "history" in columns:
        messages = [*_history(record.get(columns["history"])), *messages]
    if (system := _system(record, columns)) is not None:
        if messages[0]["role"] in ("system", "developer"):
            if messages[0]["content"].strip() != system.strip():
                raise BadRecord(
                    f"{columns['system']!r} and the conversation's own system message differ: {shorten(system, 30)} and "
                    f"{shorten(messages[0]['content'], 30)}; keep one of them"
                )
        else:
            messages = [{"role": "system", "content": system}, *messages]
    if all(message["role"] != "assistant" for message in messages):
        raise BadRecord("no message is from the assistant, so there is nothing to train")
    stored: dict[str, Any] = {"messages": messages}
    if "tools" in columns and (tools := _tools(record.get(columns["tools"]), columns["tools"])):
        stored["tools"] = json_text(tools, repr(columns["tools"]))
    if "chat_template_kwargs" in columns:
        column = columns["chat_template_kwargs"]
        arguments = read_json(record.get(column), repr(column))
        if arguments is not None and not isinstance(arguments, Mapping):
            raise BadRecord(f"{column!r} is {shorten(arguments)}, not a mapping")
        if arguments:
            stored["chat_template_kwargs"] = json_text(arguments, repr(column))
    return stored


def messages_in(record: Mapping[str, Any], column: str, *, table: bool = False) -> list[dict[str, Any]]:
    """The messages of a column, as `stored_conversation` stores them, whether or not there is anything to train.

    Raises:
        BadRecord: They are none, or hold what cannot be honoured.
    """
    return _messages(without_nulls(record) if table else record, column)


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """The conversation that `stored_conversation` made a row of."""
    messages, trained = [], []
    for message in row["messages"]:
        fields = message.get("fields")
        said = {key: value for key, value in message.items() if key not in ("trained", "fields")}
        messages.append({**said, **(json.loads(fields) if fields else {})})
        trained.append(message["role"] == "assistant" and message.get("trained") is not False)
    tools, arguments = row.get("tools"), row.get("chat_template_kwargs")
    return Conversation(
        messages, trained, json.loads(tools) if tools else None, json.loads(arguments) if arguments else {}
    )


def is_message(value: Any) -> bool:
    """Whether a JSON value looks like a message: an object with a role and a content."""
    return isinstance(value, Mapping) and any(key in value for key in _ROLE_KEYS)


def _messages_of(record: Mapping[str, Any], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    if "messages" in columns:
        return _messages(record, columns["messages"])
    if "question" in columns:
        answer = text_of(record, columns["response"])
        return [
            {"role": "user", "content": question_of(record, columns)},
            {"role": "assistant", "content": answer},
        ]
    prompt = _messages(record, columns["prompt"])
    # Only the completion is trained, whatever the prompt holds.
    for message in prompt:
        if message["role"] == "assistant":
            message["trained"] = False
    return prompt + _messages(record, columns["completion"])


def question_of(record: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """The question of a pair, its input on a line of its own below it, where there is one.

    Raises:
        BadRecord: There is none.
    """
    if "input" not in columns or record.get(columns["input"]) is None:
        return text_of(record, columns["question"])
    more = text_of(record, columns["input"], empty=True).strip()
    question = text_of(record, columns["question"], empty=bool(more))
    return "\n".join(part for part in (question if question.strip() else "", more) if part)


def _messages(record: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    turns = record.get(column)
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # as a CSV file has to keep them
        turns = read_json(turns, repr(column))
    if not isinstance(turns, list) or not turns:
        raise BadRecord(f"{column!r} is {shorten(turns)}, not a list of messages")
    turns = [message for number, turn in enumerate(turns, start=1) for message in _unpaired(number, turn)]
    turns = [message for message in turns if not _is_empty_system(message)]
    if not turns:
        raise BadRecord(f"{column!r} has an empty system message and no other")
    return [_numbered(number, turn) for number, turn in enumerate(turns, start=1)]


def _unpaired(number: int, turn: Any) -> list[Any]:
    """The messages of a turn that is a question with its answer, as some files keep them; others as they are.

    A system prompt stands beside the first question there (XTuner).
    """
    if isinstance(turn, Mapping) and not is_message(turn):
        for asked, answered in _TURN_PAIRS:
            if {asked, answered} <= set(turn):
                rest = {key: value for key, value in turn.items() if key not in (asked, answered, "system")}
                user = {"role": "user", "content": turn[asked]}
                pair = [user, {"role": "assistant", "content": turn[answered], **rest}]
                if (system := _system(turn, {"system": "system"})) is None:
                    return pair
                if number > 1:
                    raise BadRecord(
                        f"turn {number} has a 'system' of its own, {shorten(system)}, and only the first can have one; remove it, "
                        "or begin another conversation there"
                    )
                return [{"role": "system", "content": system}, *pair]
    return [turn]


def _is_empty_system(turn: Any) -> bool:
    """Whether a message is how some files say that there is no system prompt."""
    if not is_message(turn) or next((turn[key] for key in _ROLE_KEYS if turn.get(key)), None) != "system":
        return False
    return all(turn.get(key) in (None, "") for key in _CONTENT_KEYS)


def _numbered(number: int, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise BadRecord(f"message {number} is {shorten(turn)}, not an object with role and content")
    try:
        return _message({key: value for key, value in turn.items() if value is not None})
    except BadRecord as error:
        raise BadRecord(f"message {number}: {error}") from None


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    """One message with role and content, and `trained` and `fields` where they say something."""
    named = next((turn.pop(key) for key in _ROLE_KEYS if turn.get(key)), None)
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise BadRecord(f"the role is {shorten(named)}; known are {', '.join(sorted(ROLES))}")
    for key in _ROLE_KEYS:
        turn.pop(key, None)
    for key in _NOT_TEXT:
        if turn.get(key):
            raise BadRecord(f"it has {key}, and only text is trained here")
    message: dict[str, Any] = {"role": role, "content": ""}
    fields: dict[str, Any] = {}
    if named in _CALL_ROLES:
        key = _content_key(turn)
        fields["tool_calls"] = _tool_calls(read_json(turn.pop(key, None), repr(key)))
    if "function_call" in turn:  # OpenAI's older form, one call a turn
        fields["tool_calls"] = _tool_calls([turn.pop("function_call")])
    if turn.get("tool_calls"):
        fields["tool_calls"] = _tool_calls(read_json(turn["tool_calls"], "'tool_calls'"))
    turn.pop("tool_calls", None)
    message["content"] = _content(turn, role, fields)
    for key in list(turn):
        if key.lower() in _UNCLEAR_TRAIN_KEYS:
            raise BadRecord(
                f"{key!r} may ask not to train the turn, or a part of it, and does not say which; write weight: 0 or weight: 1 "
                "in its place, or leave it out"
            )
    train = {key: switch_of(turn.pop(key), repr(key)) for key in list(turn) if key.lower() in TRAIN_KEYS}
    if len(set(train.values())) > 1:
        raise BadRecord(f"{' and '.join(map(repr, train))} contradict each other")
    if train and role == "assistant" and not any(train.values()):
        message["trained"] = False
    if train and role != "assistant" and any(train.values()):
        raise BadRecord(
            f"{next(iter(train))!r} asks to train a message with the role {role}; only the assistant's turns are trained, so "
            "leave it out there"
        )
    fields |= turn
    if fields:
        message["fields"] = json_text(fields, f"a field ({', '.join(fields)})")
    return message


def _content_key(turn: Mapping[str, Any]) -> str:
    return next((key for key in _CONTENT_KEYS if key in turn), _CONTENT_KEYS[0])


def _content(turn: dict[str, Any], role: str, fields: dict[str, Any]) -> str:
    """Take the content out of a message, as one text; reasoning in parts of its own goes to the fields."""
    key = _content_key(turn)
    speechless = role == "tool" or (
        role == "assistant"
        and (bool(fields.get("tool_calls")) or any(turn.get(name) for name in REASONING_KEYS))
    )
    value = turn.get(key)
    if isinstance(value, list):
        turn[key] = _joined(value, fields)
        speechless = speechless or bool(fields.get("reasoning_content"))
    elif role == "tool" and isinstance(value, Mapping):
        turn[key] = json_text(value, repr(key))
    if value is None and speechless:
        return ""
    content = text_of(turn, key, empty=speechless)
    del turn[key]
    return content


def _joined(parts: list[Any], fields: dict[str, Any]) -> str:
    """The texts of a content that is a list of parts, joined as chat templates join them: with nothing between."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind in ("thinking", "reasoning"):
            thought = part.get(kind, part.get("text"))
            if isinstance(thought, str):
                fields["reasoning_content"] = fields.get("reasoning_content", "") + thought
                continue
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise BadRecord(
                f"the content has a part of type {shorten(kind)} ({shorten(part)}), and only text is trained here"
            )
        texts.append(text)
    return "".join(texts)


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Calls as chat templates read them: ``function`` with a name, and arguments that are an object."""
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRecord(f"the calls of tools are {shorten(calls)}, not a list of objects")
    found = []
    for call in calls:
        whole = _function(call, "the call")
        function = whole["function"]
        named = next((key for key in _ARGUMENTS if key in function), None)
        if named is None and (strange := sorted(set(function) - {"name", "description"})):
            raise BadRecord(
                f"the call of {function['name']!r} has no arguments, and {', '.join(map(repr, strange))} in their place; known "
                f"are {', '.join(_ARGUMENTS)}"
            )
        # Nothing at all is how some servers write a call without arguments.
        given = function.pop(named) if named is not None else {}
        arguments = read_json(given or {}, f"the arguments of {function['name']!r}")
        if not isinstance(arguments, Mapping):
            raise BadRecord(f"the arguments of {function['name']!r} are {shorten(arguments)}, not an object")
        found.append({**whole, "function": {**function, "arguments": arguments}})
    return found


def _function(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A call or a tool with its ``type`` and its ``function``, which some files leave out."""
    function = value.get("function")
    if not isinstance(function, Mapping):
        function = {key: item for key, item in value.items() if key not in ("type", "id")}
        value = {key: value[key] for key in ("type", "id") if key in value}
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRecord(f"{what} of a tool has no name: {shorten(dict(function))}")
    return {**value, "type": "function", "function": dict(function)}


def _tools(value: Any, column: str) -> list[dict[str, Any]]:
    tools = read_json(value, repr(column)) if value else None
    if not tools:
        return []
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRecord(f"{column!r} is {shorten(tools)}, not a list of tools")
    return [_function(tool, "the description") for tool in tools]


def _system(record: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    if "system" not in columns or record.get(columns["system"]) is None:
        return None
    text = text_of(record, columns["system"], empty=True)
    return text if text.strip() else None


def _history(value: Any) -> list[dict[str, Any]]:
    """Turns before the question, as a list of (question, answer)."""
    if not value:
        return []
    messages = []
    for number, turn in enumerate(value if isinstance(value, list) else [value], start=1):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise BadRecord(f"turn {number} of the history is {shorten(turn)}, not a question and an answer")
        asked, answered = (whole_text(text, "the history") for text in turn)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return messages
