"""Multiple choice: the text of the option that a record calls the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LABEL = re.compile(r"\s*\(?([A-Za-z])\s*[).:]\s*(.*?)\s*", re.DOTALL)
# The options of MathQA stand in one text: "a ) 38 , b ) 27.675 , c ) 30".
_IN_ONE_TEXT = re.compile(r"(?:^|,)\s*([a-z])\s*\)\s*")


def chosen_option(options: Any, choice: Any) -> str | None:
    """Look up the option that is meant.

    Args:
        options: A list of texts, perhaps each with its label (`A)21`), a mapping from labels, `{"label": [...], "text":
            [...]}`, or one text with all of them.
        choice: The label of the right one, or its place from 0.

    Returns:
        Its text without the label; None where the choice is neither, and so perhaps the answer itself.

    Raises:
        ValueError: A number is the place of one option and the text of another.
    """
    labelled = _labelled(options)
    if isinstance(choice, int) and not isinstance(choice, bool):
        values = list(labelled.values())
        if not isinstance(options, list) or not 0 <= choice < len(values):
            return None
        if str(choice) in values and values[choice] != str(choice):
            raise ValueError(f"the answer {choice} is the place of one option and the text of another")
        return values[choice]
    return labelled.get(choice.strip().strip("().").upper()) if isinstance(choice, str) else None


def _labelled(options: Any) -> dict[str, str]:
    """Label → text."""
    if isinstance(options, str):
        parts = _IN_ONE_TEXT.split(options.strip().strip("[]").replace("'", ""))[1:]
        return {label.upper(): text.strip() for label, text in zip(parts[::2], parts[1::2], strict=True)}
    if isinstance(options, Mapping):
        if {"label", "text"} <= set(options):
            return {str(k).upper(): str(v) for k, v in zip(options["label"], options["text"], strict=False)}
        return {str(label).upper(): str(text) for label, text in options.items() if text is not None}
    found: dict[str, str] = {}
    for place, option in enumerate(options or ()):
        own = chr(ord("A") + place)
        label = _LABEL.fullmatch(option) if isinstance(option, str) else None
        found[own] = label[2] if label and label[1].upper() == own else str(option).strip()
    return found
