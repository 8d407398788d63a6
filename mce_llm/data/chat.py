"""Conversations through a tokenizer's chat template, cut into masked and trained pieces of text.

The template is rendered as text and cut where each assistant turn begins, at exactly the point where
generation would begin (``add_generation_prompt=True``). Tokenising the pieces is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from mce_llm.data.encoding import special_token_texts
from mce_llm.data.errors import DataError, shorten

Message = Mapping[str, str]


class Segment(NamedTuple):
    """A piece of a rendered conversation."""

    text: str
    trained: bool
    needs_eos: bool = False
    """The template closes this assistant turn with no special token, so EOS has to be added."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generate: bool) -> str:
    """Render messages as text with the tokenizer's chat template.

    Args:
        tokenizer: A tokenizer that has a chat template.
        messages: ``{"role": ..., "content": ...}`` in order.
        generate: End with the header of an assistant turn, ready to be continued.

    Returns:
        The rendered text; it carries its own BOS where the template writes one.

    Raises:
        DataError: The tokenizer has no chat template, or the template refuses these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"prompt 'chat' needs a chat template, and the tokenizer "
            f"{tokenizer.name_or_path or type(tokenizer).__name__!r} has none; use the prompt 'plain' or "
            "'metamath' for a base model, or set tokenizer.chat_template"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=generate
        )
    except (TemplateError, KeyError, TypeError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise DataError(
            f"the tokenizer's chat template refuses a conversation with the roles ({roles}): {error}; "
            "change the records, or set another tokenizer.chat_template"
        ) from error
    return str(text)


def split_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Segment]:
    """Cut a conversation into alternating masked and trained segments.

    Each assistant turn is one trained segment: its text as the template writes it and the end-of-turn
    token. All else is masked: other roles, headers, and what the template writes after the end-of-turn
    token. Messages after the last assistant turn are left out.

    Args:
        tokenizer: A tokenizer that has a chat template.
        messages: The conversation; at least one assistant turn.

    Returns:
        The segments; the first is masked, the last is trained.

    Raises:
        DataError: There is no assistant turn, or the template writes a turn otherwise than it announces
            it, so that the trained text would not be what follows the prompt at generation.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError("the conversation has no assistant turn, so nothing in it can be trained")
    enders = special_token_texts(tokenizer)
    segments: list[Segment] = []
    done = ""
    for index in turns:
        before = render(tokenizer, messages[:index], generate=True)
        after = render(tokenizer, messages[: index + 1], generate=False)
        if not before.startswith(done):
            raise DataError(
                f"the chat template rewrites earlier turns (message {index + 1}: expected the text to go on "
                f"after {shorten(done[-40:])}), so they cannot be trained in one sequence; give one record "
                "for each assistant turn, or set a tokenizer.chat_template that leaves earlier turns alone"
            )
        if not after.startswith(before):
            raise DataError(
                f"the chat template opens generation with {shorten(before[-40:])} but does not write that "
                "before an assistant turn, so training and generation would differ; set a "
                "tokenizer.chat_template whose generation prompt is also how it opens a written turn"
            )
        answer = after[len(before) :]
        closed = answer.rstrip()
        ends_itself = any(ender and closed.endswith(ender) for ender in enders)
        answer = closed if ends_itself else answer
        segments.append(Segment(before[len(done) :], trained=False))
        segments.append(Segment(answer, trained=True, needs_eos=not ends_itself))
        done = before + answer
    return segments
