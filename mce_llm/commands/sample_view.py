"""Examples as the model will see them, with the trained tokens marked by colour and by brackets.

⟦…⟧ surrounds every run of trained tokens, so that the marks survive a log file; spaces at the edges of a token are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from mce_llm.data import IGNORE_INDEX
from mce_llm.running.visible_text import visible

OPENING, CLOSING = "⟦", "⟧"
_TRAINED = "bold green"
_MASKED = "dim"


def marked(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int], most: int = 600
) -> Text:
    """One row as text.

    Args:
        tokenizer: Turns ids back into text, special tokens included.
        input_ids: The row.
        labels: Its labels; -100 is not trained. The first is never used, whatever it says.
        most: Show this many tokens at most, from both ends.

    Returns:
        The text; trained runs are green and stand in ⟦ ⟧.
    """
    trained = [n > 0 and label != IGNORE_INDEX for n, label in enumerate(labels)]
    text = Text()
    places = list(range(len(input_ids)))
    parts = [places] if len(places) <= most else [places[: most // 2], places[-(most - most // 2) :]]
    for number, part in enumerate(parts):
        if number:
            text.append(f" … {len(places) - most:,} tokens … ", style="italic")
        for is_trained, run in groupby(part, key=lambda place: trained[place]):
            words = visible(
                str(tokenizer.decode([input_ids[place] for place in run], skip_special_tokens=False))
            )
            if is_trained:
                text.append(OPENING, style=_TRAINED).append(words, style=_TRAINED).append(
                    CLOSING, style=_TRAINED
                )
            else:
                text.append(words, style=_MASKED)
    return text
