"""What a model says and what it only thinks: the blocks of reasoning models, and the text that stands behind them.

A reasoning model thinks between two tags before it answers. What stands there is no answer, whatever it looks like; where
the block does not end, there is no answer yet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

END_OF_TEXT = r"</s>|<\|(?:endoftext|end_of_text|im_end|eot_id|eom_id|end|return)\|>|<eos>|<end_of_turn>|<turn\|>|<\uff5cend"
"""A pattern of the marks that end a turn or a text."""

_NAME = r"(?:[a-z]{1,20}[_:])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|analysis|rationale|monologue)"
# Opening and closing tags of other forms: Kimi, OpenThinker, Cohere, Magistral, Gemma, and the channels of gpt-oss.
_PAIRS = (
    (r"◁think▷", r"◁/think▷"),
    (r"<\|(?:begin|start)_of_(?:thought|think(?:ing)?|reasoning)\|>", r"<\|end_of_(?:thought|think(?:ing)?|reasoning)\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|(?:think(?:ing)?|reasoning)_start\|>", r"<\|(?:think(?:ing)?|reasoning)_end\|>"),
    (r"<\|(?:think(?:ing)?|reasoning)\|>", r"<\|/(?:think(?:ing)?|reasoning)\|>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"<\|channel>thought\b", r"<channel\|>"),
    (r"<\|channel\|>(?:analysis|commentary)\b[^<\n]{0,80}<\|message\|>", r"<\|(?:end|call|return)\|>"),
)  # fmt: skip
_FINAL_CHANNEL = re.compile(r"<\|channel\|>final(?:<\|message\|>)?|<\|START_RESPONSE\|>")
# The channels of gpt-oss where the special tokens were left out of the text.
_BARE_CHANNEL = re.compile(r"analysis(?=[A-Z\"'(\d])")
_BARE_FINAL = re.compile(r"assistantfinal")


class ThinkingTagsError(ValueError):
    """Tags that cannot be told from other text."""


@dataclass(frozen=True)
class Outside:
    """The part of a text that was not only thought.

    Attributes:
        text: What stands behind the last block, or all of a text without any.
        unfinished: Whether the text ends inside a block; then there is no answer yet, and `text` is empty.
    """

    text: str
    unfinished: bool = False


@dataclass(frozen=True)
class _Tags:
    """One way of marking thoughts: whole patterns of its opening and its closing tags."""

    opening: re.Pattern[str]
    closing: re.Pattern[str]


def tags_of(written: str | None) -> tuple[str, ...]:
    """Return the tags that an option names, with commas between."""
    return tuple(part.strip() for part in written.split(",")) if written is not None else ()


def check_tags(tags: Sequence[str]) -> None:
    """Refuse tags that mark nothing.

    Args:
        tags: As for `outside_of_thought`.

    Raises:
        ThinkingTagsError: One is neither a name nor two different tags with a space between.
    """
    for tag in tags:
        parts = tag.split()
        if not (re.fullmatch(r"[A-Za-z][\w:.-]*", tag) or (len(parts) == 2 and parts[0] != parts[1])):
            raise ThinkingTagsError(
                f"a thinking tag is a name, such as 'ponder' for <ponder>…</ponder>, or an opening and a closing tag "
                f"with a space between, such as '[[T]] [[/T]]'; got {tag!r}"
            )


def opens_thought(text: str, tags: Sequence[str] = ()) -> str:
    """Return the opening tag that a prompt ends with, so that the answer begins inside a block; else an empty string.

    Args:
        text: A prompt.
        tags: As for `outside_of_thought`.
    """
    text = text.rstrip()
    for kind in _all_tags(tuple(tags)):
        for match in kind.opening.finditer(text, max(0, len(text) - 200)):
            if match.end() == len(text):
                return match[0]
    return ""


def is_thinking_tag(token: str, tags: Sequence[str] = ()) -> bool:
    """Whether a token is a tag around thoughts; such tokens are kept in a text though they are special."""
    return any(
        kind.opening.fullmatch(token) or kind.closing.fullmatch(token) for kind in _all_tags(tuple(tags))
    )


def outside_of_thought(text: str, tags: Sequence[str] = ()) -> Outside:
    """Return what a text says outside of its reasoning.

    An opening tag may be missing, as it is where the prompt ended with it. Only the first turn counts: what stands behind a
    mark of its end is cut off, unless nothing was said before.

    Args:
        text: What a model wrote.
        tags: Further tags: names (`ponder` for `<ponder>…</ponder>`), or an opening and a closing tag with a space
            between. Those of the common models are known.

    Returns:
        The text behind the last block; what stands before it where nothing stands behind.
    """
    if _BARE_CHANNEL.match(text):
        finals = list(_BARE_FINAL.finditer(text))
        return Outside(text[finals[-1].end() :]) if finals else Outside("", unfinished=True)
    if final := _FINAL_CHANNEL.search(text):
        text = text[final.end() :]
    kinds = _all_tags(tuple(tags))
    inside: _Tags | None = None
    said, start, thought = "", 0, False  # thought: whether a block has ended
    own_closing: dict[str, bool] = {}  # name of a tag → whether the text closes it; looked for once
    for match in _tokens(tuple(tags)).finditer(text):
        token = match[0]
        if inside is not None:
            if inside.closing.fullmatch(token):
                inside, start, thought = None, match.end(), True
            elif match["end"]:
                return Outside("", unfinished=True)
            continue
        before = text[start : match.start()]
        opened = next((kind for kind in kinds if kind.opening.fullmatch(token)), None)
        if opened is not None:
            said, inside = before if before.strip() else said, _as_closed(opened, token, text, own_closing)
        elif match["end"]:
            if before.strip() or said.strip():
                return Outside(before if before.strip() else said)
            start = match.end()
        else:  # a closing tag by itself: what stands before it was thought, unless a block had ended before
            said, start, thought = before if thought and before.strip() else said * thought, match.end(), True
    if inside is not None:
        return Outside("", unfinished=True)
    return Outside(text[start:] if text[start:].strip() else said)


@lru_cache(maxsize=64)
def _all_tags(tags: tuple[str, ...]) -> tuple[_Tags, ...]:
    check_tags(tags)
    kinds = [_named(_NAME), *(_Tags(re.compile(opening), re.compile(closing)) for opening, closing in _PAIRS)]
    for tag in tags:
        parts = tag.split()
        kinds.append(
            _named(re.escape(tag))
            if len(parts) == 1
            else _Tags(re.compile(re.escape(parts[0])), re.compile(re.escape(parts[1])))
        )
    return tuple(kinds)


def _named(name: str) -> _Tags:
    return _Tags(
        re.compile(rf"<(?:{name})(?:\s[^<>]{{0,200}})?>", re.IGNORECASE),
        re.compile(rf"</(?:{name})\s{{0,9}}>", re.IGNORECASE),
    )


@lru_cache(maxsize=64)
def _tokens(tags: tuple[str, ...]) -> re.Pattern[str]:
    marks = "|".join(
        f"(?:{_inline(pattern)})" for kind in _all_tags(tags) for pattern in (kind.opening, kind.closing)
    )
    return re.compile(f"(?P<end>{END_OF_TEXT})|{marks}")


def _inline(pattern: re.Pattern[str]) -> str:
    return f"(?i:{pattern.pattern})" if pattern.flags & re.IGNORECASE else pattern.pattern


def _as_closed(kind: _Tags, opening: str, text: str, own_closing: dict[str, bool]) -> _Tags:
    """Bind a block to the closing tag of its own name, where the text has one, so that another inside does not end it."""
    name = re.match(r"<([\w:.-]+)", opening)
    if name is None:
        return kind
    if name[1] not in own_closing:
        own_closing[name[1]] = f"</{name[1]}" in text
    if not own_closing[name[1]]:
        return kind
    return _Tags(kind.opening, re.compile(rf"</{re.escape(name[1])}\s{{0,9}}>", re.IGNORECASE))
