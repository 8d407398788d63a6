"""What a chat template expects of messages, found out by rendering small ones, and messages put that way.

Templates agree on roles and contents and on little else: some take a content only as a list of parts, some write the
arguments of a call as the text that they are given, and the reasoning of a turn has three names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mce_llm.data.conversations import REASONING_KEYS

_USER = {"role": "user", "content": "mce-llm-asks"}


@dataclass(frozen=True)
class Dialect:
    """How messages have to be put for a template.

    Attributes:
        parts: A content is a list of parts; a text would be left out, or refused.
        text_arguments: The arguments of a call are JSON in a string; an object would be refused, or written as Python's.
        reasoning: The one name under which it reads reasoning; None where it reads several, or none.
        developer: It knows the role; otherwise a developer speaks as the system.
    """

    parts: bool = False
    text_arguments: bool = False
    reasoning: str | None = None
    developer: bool = True

    def put(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages as the template expects them."""
        return [self._put(message) for message in messages]

    def _put(self, message: Mapping[str, Any]) -> dict[str, Any]:
        put = dict(message)
        if self.reasoning is not None:
            put = {self.reasoning if key in REASONING_KEYS else key: value for key, value in put.items()}
        if put["role"] == "developer" and not self.developer:
            put["role"] = "system"
        if self.parts and isinstance(put.get("content"), str):
            put["content"] = [{"type": "text", "text": put["content"]}]
        if self.text_arguments and put.get("tool_calls"):
            put["tool_calls"] = [_with_text_arguments(call) for call in put["tool_calls"]]
        return put


def template_of(tokenizer: PreTrainedTokenizerBase, *, tools: bool = False) -> str:
    """The text of a tokenizer's template, empty without one; there may be one of its own for conversations with tools."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = (template.get("tool_use") if tools else None) or template.get("default")
    return template or ""


_known: dict[str, Dialect] = {}


def dialect_of(tokenizer: PreTrainedTokenizerBase, *, tools: bool = False) -> Dialect:
    """How messages have to be put for a tokenizer's template.

    Args:
        tokenizer: With a template.
        tools: For a conversation with tools.
    """
    text = template_of(tokenizer, tools=tools)
    if text not in _known:
        read = [key for key in REASONING_KEYS if re.search(rf"[.'\"]{key}\b", text)]
        parts = _reads_parts_alone(tokenizer, text)
        _known[text] = Dialect(
            parts=parts,
            text_arguments=_writes_arguments_as_they_are(tokenizer, text, parts),
            reasoning=read[0] if len(read) == 1 else None,
            developer="developer" in text,
        )
    return _known[text]


def _reads_parts_alone(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a template writes a content that is a list of parts, and not one that is a text."""
    as_parts = {**_USER, "content": [{"type": "text", "text": _USER["content"]}]}
    return _USER["content"] not in _tried(tokenizer, text, [_USER]) and _USER["content"] in _tried(
        tokenizer, text, [as_parts]
    )


def _writes_arguments_as_they_are(tokenizer: PreTrainedTokenizerBase, text: str, parts: bool) -> bool:
    """Whether a template writes arguments without turning them into JSON, so that they have to be JSON already."""
    call = {
        "id": "mcellm001",
        "type": "function",
        "function": {"name": "f", "arguments": {"mce-key": "mce-value"}},
    }
    asked = Dialect(parts=parts).put([_USER, {"role": "assistant", "content": "", "tool_calls": [call]}])
    written = _tried(tokenizer, text, asked)
    if "mce-value" in written:
        return "{'mce-key'" in written
    return "mce-value" in _tried(tokenizer, text, Dialect(text_arguments=True).put(asked))


def _tried(tokenizer: PreTrainedTokenizerBase, text: str, messages: list[dict[str, Any]]) -> str:
    """What a template writes, empty where it refuses."""
    try:
        return str(tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False))
    except Exception:  # a template raises what it likes; refusing is an answer here
        return ""


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
