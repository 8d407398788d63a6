"""What a chat template leaves out: texts of a conversation that do not occur in what is trained on.

Templates strip the reasoning of earlier turns, drop a system role that they do not know, ignore tools and fields. None of
them says so; here it is looked up in the rendered text. Beside it stands what is in the text and not read as text: contents
that spell a special token.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mce_llm.data.conversations import REASONING_KEYS, Conversation
from mce_llm.data.errors import shorten

AFTER = "message after the last trained turn"
SPELLING = "message that spells a special token"
_SHOWN = 40
_TOLD = ("field system", "field system_prompt")  # what the model was told, in the place of a field


@dataclass(frozen=True)
class LostText:
    """Texts of one kind that are not in what is trained on.

    Attributes:
        kind: What they are, such as ``"system message"``, ``"reasoning"`` or ``"field name"``.
        texts: How many.
        examples: In how many examples.
        place: Where the first is from.
        first: How it begins.
    """

    kind: str
    texts: int
    examples: int
    place: str
    first: str

    @property
    def grave(self) -> bool:
        """Whether it is a text that somebody said or was told, not a field beside it."""
        return self.kind in _TOLD or not self.kind.startswith("field ")

    @property
    def sentence(self) -> str:
        """What has become of them."""
        if self.kind == SPELLING:
            return f"read as the special tokens that they spell, and not as text: {self}"
        return f"the chat template leaves out {self}"

    def __str__(self) -> str:
        return f"{self.kind}: {self.texts:,} in {self.examples:,} examples ({self.place}: {self.first})"


def lost_texts(
    conversation: Conversation,
    rendered: Sequence[str],
    last: int,
    *,
    template: str = "",
    special: Collection[str] = (),
) -> list[tuple[str, str]]:
    """The texts of a conversation that occur in none of its examples.

    White space is not compared, and a text may also stand there as JSON writes it.

    Args:
        conversation: As it was stored.
        rendered: The text of each example that was made of it.
        last: The place of the last turn that is trained; what comes after it is in no example.
        template: The template's text: numbers and switches beside a message are not looked up in what is rendered, but
            under their name here.
        special: Spellings of special tokens; a content that holds one is named too.

    Returns:
        (kind, the text's beginning) for each.
    """
    squeezed: list[str] = []

    def there(text: str) -> bool:
        text = text.strip()
        if not text or any(text in whole for whole in rendered):
            return True
        if not squeezed:
            squeezed.extend("".join(whole.split()) for whole in rendered)
        forms = (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1])
        return any("".join(form.split()) in whole for form in forms for whole in squeezed)

    lost = [
        (AFTER if number > last else kind, text)
        for number, message in enumerate(conversation.messages)
        for kind, text in _texts(message)
        if (number > last and kind == f"{message['role']} message") or (number <= last and not there(text))
    ]
    for message in conversation.messages:
        for key, value in message.items():
            if isinstance(value, bool | int | float) and not re.search(
                rf"[.'\"]{re.escape(key)}\b", template
            ):
                lost.append((f"field {key}", json.dumps(value)))
        if any(token in message["content"] for token in special):
            lost.append((SPELLING, message["content"]))
    lost += [
        ("description of a tool", text) for text in _tool_texts(conversation.tools or ()) if not there(text)
    ]
    return [(kind, shorten(text.strip(), _SHOWN)) for kind, text in lost]


def counted(lost: Sequence[str | None], place: Callable[[int], str]) -> tuple[LostText, ...]:
    """Add up what examples have lost.

    Args:
        lost: JSON of `lost_texts` of each example, or None.
        place: Where the example of a number (from 0) is from.
    """
    texts: Counter[str] = Counter()
    examples: Counter[str] = Counter()
    first: dict[str, tuple[str, str]] = {}
    for number, entry in enumerate(lost):
        found = json.loads(entry) if entry else []
        for kind, text in found:
            first.setdefault(kind, (place(number), text))
        texts.update(kind for kind, _ in found)
        examples.update({kind for kind, _ in found})
    return tuple(LostText(kind, count, examples[kind], *first[kind]) for kind, count in texts.most_common())


def _texts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in message.items():
        if key in ("role", "tool_call_id"):  # a reference to a call, and no text
            continue
        if key == "content":
            yield f"{message['role']} message", value
        elif key in REASONING_KEYS:
            yield "reasoning", value if isinstance(value, str) else json.dumps(value)
        elif key == "tool_calls":
            for call in value:
                yield "call of a tool", call["function"]["name"]
                for text in _strings(call["function"].get("arguments")):
                    yield "call of a tool", text
        else:
            for text in _strings(value):
                yield f"field {key}", text


def _tool_texts(tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for tool in tools:
        yield tool["function"]["name"]
        if isinstance(description := tool["function"].get("description"), str):
            yield description


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
