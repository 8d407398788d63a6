"""Which questions of a data set are copies of each other, by their texts."""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


def question_key(text: str) -> str:
    """What two copies of a question share: the text, whatever its white space.

    Characters that cannot be seen do not count, nor how accents are encoded (Unicode NFC). Case, digits and punctuation
    count: `f(A)` is not `f(a)`, and 3² is not 32. The reference does not: a question that stands twice with two references
    is still one question. Paraphrases, and one story with other numbers, are not
    found.

    Args:
        text: The question.

    Returns:
        A text that is equal for copies.
    """
    return " ".join(_UNSEEN.sub("", unicodedata.normalize("NFC", text)).split())
