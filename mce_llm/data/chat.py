"""Conversations through a tokenizer's chat template, cut into masked and trained pieces of text.

The template is rendered as text and cut where each trained turn begins, at exactly the point where
generation would begin (``add_generation_prompt=True``). Tokenising the pieces is left to the caller.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from mce_llm.data.conversations import Conversation
from mce_llm.data.dialects import dialect_of, template_of
from mce_llm.data.encoding import special_token_texts
from mce_llm.data.errors import DataError, shorten
from mce_llm.data.template_date import CLOCK, day_of, with_fixed_day
from mce_llm.running.messages import nearest_hint

Turns = Literal["all", "last", "each"]
"""Which turns of a conversation are trained: all in one example, the last alone, or each in an example of its own."""
TURNS: tuple[Turns, ...] = ("all", "last", "each")
# What `apply_chat_template` is told by this package, or would return something other than text for.
_RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {
    "documents",
    "kwargs",
}


_ASKING = {"role": "user", "content": "?"}


class Segment(NamedTuple):
    """A piece of a rendered conversation."""

    text: str
    trained: bool
    needs_eos: bool = False
    """The template closes this assistant turn with no special token, so EOS has to be added."""


def check_arguments(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
    """Check that a chat template reads the arguments that it is to be given.

    Args:
        tokenizer: With the template.
        arguments: Name → value, such as ``enable_thinking``.

    Raises:
        DataError: The template reads no such argument, or it is one that this package sets.
    """
    text = template_of(tokenizer, tools=True) + template_of(tokenizer)
    for name, value in arguments.items():
        if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off"):
            raise DataError(
                f"chat_template_kwargs: {name} is the word {value!r}, which a template takes for true; write it without quotes"
            )
        if name in _RESERVED:
            raise DataError(
                f"chat_template_kwargs cannot set {name!r}: it is not read by the template, but decides what is made of it"
            )
        if not re.search(rf"\b{re.escape(name)}\b", text):
            words = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text))
            raise DataError(
                f"chat_template_kwargs: the chat template reads no {name!r}{nearest_hint(name, words)}, so it would have no effect"
            )
        if name == CLOCK:
            day_of(value)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    generate: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """Render messages as text with the tokenizer's chat template.

    Args:
        tokenizer: A tokenizer that has a chat template.
        messages: ``{"role": ..., "content": ...}`` in order; at least one.
        generate: End with the header of an assistant turn, ready to be continued.
        tools: Functions that the model may call, as JSON schemas.
        arguments: What else the template is given, such as ``enable_thinking``; ``strftime_now`` is the day that stands where
            it writes today's date, `FIXED_DATE` where it is not given.

    Returns:
        The rendered text; it carries its own BOS where the template writes one.

    Raises:
        DataError: The tokenizer has no chat template, or the template refuses these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"prompt 'chat' needs a chat template, and the tokenizer "
            f"{tokenizer.name_or_path or type(tokenizer).__name__!r} has none; use the prompt 'plain' or "
            "'metamath' for a base model, or set chat_template (in Python: tokenizer.chat_template)"
        )
    try:
        text = tokenizer.apply_chat_template(
            dialect_of(tokenizer, tools=bool(tools)).put(messages),
            tools=None if tools is None else [dict(tool) for tool in tools],
            tokenize=False,
            add_generation_prompt=generate,
            **with_fixed_day(template_of(tokenizer, tools=bool(tools)), arguments),
        )
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise DataError(
            f"the tokenizer's chat template refuses a conversation with the roles ({roles}): {error}; "
            "change the records, or set another chat_template"
        ) from error
    return str(text)


def split_turns(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    arguments: Mapping[str, Any] | None = None,
) -> list[Segment]:
    """Cut a conversation into masked and trained segments.

    Each trained turn is one segment: its text as the template writes it and the end-of-turn token. All
    else is masked: other roles, headers, turns that are not trained, and what the template writes after
    the end-of-turn token. Messages after the last trained turn are left out.

    Args:
        tokenizer: A tokenizer that has a chat template.
        conversation: The conversation.
        arguments: What else the template is given; the conversation's own arguments come first.

    Returns:
        The segments, alternating; one masked segment where no turn is trained.

    Raises:
        DataError: There is no assistant turn, or the template writes a turn otherwise than it announces
            it, so that the trained text would not be what follows the prompt at generation.
    """
    messages = conversation.messages
    if all(message["role"] != "assistant" for message in messages):
        raise DataError("the conversation has no assistant turn, so nothing in it can be trained")
    if conversation.template_arguments:
        check_arguments(tokenizer, conversation.template_arguments)
    options: dict[str, Any] = {
        "tools": conversation.tools,
        "arguments": {**(arguments or {}), **conversation.template_arguments},
    }
    turns = [index for index, trained in enumerate(conversation.trained) if trained]
    if not turns:
        return [Segment(render(tokenizer, messages, generate=False, **options), trained=False)]
    enders = special_token_texts(tokenizer)
    segments: list[Segment] = []
    done = ""
    for index in turns:
        after = render(tokenizer, messages[: index + 1], generate=False, **options)
        if index:
            before = render(tokenizer, messages[:index], generate=True, **options)
        else:
            before = _opening(tokenizer, messages[0], after, options)
        if not before.startswith(done):
            raise DataError(
                f"the chat template rewrites earlier turns (message {index + 1}: expected the text to go on "
                f"after {shorten(done[-40:])}), so they cannot be trained in one sequence; set train_turns to each (one "
                "example a turn, as the model meets it) or to last, or set a chat_template that leaves earlier turns alone"
            )
        if not after.startswith(before):
            raise DataError(
                f"the chat template opens generation with {shorten(before[-40:])} but does not write that "
                "before an assistant turn, so training and generation would differ; where that is the beginning of reasoning, give "
                "the records reasoning_content, or the template chat_template_kwargs such as {enable_thinking: false}; or set a "
                "chat_template whose generation prompt is also how it opens a written turn"
            )
        answer = after[len(before) :]
        following = [*messages[: index + 1], _ASKING]

        def going_on(begin: str = before, following: list[dict[str, Any]] = following) -> str:
            return render(tokenizer, following, generate=False, **options).removeprefix(begin)

        answer, ender = _closed(answer, enders, going_on)
        if not _without(answer, enders):
            raise DataError(
                f"the chat template writes nothing of message {index + 1} ({_told(messages[index])}), so an empty answer would be "
                "trained; set a chat_template that writes it, or give the turn weight: 0"
            )
        segments.append(Segment(before[len(done) :], trained=False))
        segments.append(Segment(answer, trained=True, needs_eos=ender is None))
        done = before + answer
    return segments


def end_of_turn(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any] | None = None,
) -> str | None:
    """The special token that a template writes behind an assistant's turn.

    Unlike `split_turns` this asks nothing of the template's generation prompt, so that a model can be evaluated that could
    not be trained in the same way.

    Args:
        tokenizer: A tokenizer that has a chat template.
        messages: What comes before the turn.
        arguments: What else the template is given.

    Returns:
        Its spelling, or None where the template writes none.

    Raises:
        DataError: The template refuses, or leaves the answer out.
    """
    answer = "mce-llm-answers"
    turns = [*messages, {"role": "assistant", "content": answer}]

    def behind(messages: Sequence[Mapping[str, Any]]) -> str:
        written = render(tokenizer, messages, generate=False, arguments=arguments)
        _, found, rest = written.rpartition(answer)
        if not found:
            raise DataError("the chat template leaves an assistant's answer out; set another chat_template")
        return rest

    return _closed(behind(turns), special_token_texts(tokenizer), lambda: behind([*turns, _ASKING]))[1]


def _closed(answer: str, enders: set[str], going_on: Callable[[], str]) -> tuple[str, str | None]:
    """An answer up to the end of its turn, and the special token there; None where the template writes none.

    Args:
        answer: What a template writes from the answer on, where it is the last turn.
        enders: The special tokens.
        going_on: What it writes from there on, where a user speaks next.
    """
    closed = answer.rstrip()
    ender = _ender(closed, enders)
    if ender is None:
        return answer, None
    shorter = closed.removesuffix(ender).rstrip()
    inner = _ender(shorter, enders)
    if inner is not None:
        # The last token may close the text and not the turn (Phi 3 ends a turn, and behind the last one the text).
        try:
            written = going_on()
        except DataError:  # no user may speak here, as behind a call of a tool
            return closed, ender
        if not written.startswith(closed) and written.startswith(shorter):
            return shorter, inner
    return closed, ender


def _ender(text: str, enders: set[str]) -> str | None:
    """The special token that a text ends in; None where it ends in none."""
    return next((ender for ender in enders if ender and text.endswith(ender)), None)


def _without(text: str, enders: set[str]) -> str:
    """What is left of an answer without the special tokens at its end."""
    text = text.strip()
    while (ender := _ender(text, enders)) is not None:
        text = text.removesuffix(ender).rstrip()
    return text


def _told(message: Mapping[str, Any]) -> str:
    names = [call["function"]["name"] for call in message.get("tool_calls") or ()]
    return f"a call of {', '.join(names)}" if names else shorten(message.get("content"), 30)


def _opening(
    tokenizer: PreTrainedTokenizerBase, first: Mapping[str, Any], written: str, options: Mapping[str, Any]
) -> str:
    """What stands before the answer of a conversation that begins with the assistant.

    Templates are not rendered without a message, so the header is what generation adds behind a user's.
    """
    asked = [_ASKING]
    whole = render(tokenizer, asked, generate=True, **options)
    closed = render(tokenizer, asked, generate=False, **options)
    shared = next((n for n, (a, b) in enumerate(zip(whole, closed, strict=False)) if a != b), len(closed))
    header = whole[shared:]
    if not header.strip() or header == whole or (place := written.find(header)) < 0:
        raise DataError(
            f"the conversation begins with the assistant ({shorten(first['content'], 30)}), and the chat template has no "
            "header of its own for an answer that follows nothing; begin with a user's message or the system's, or give the "
            "first turn weight: 0"
        )
    return written[: place + len(header)]
