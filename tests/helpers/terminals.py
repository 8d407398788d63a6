"""What a terminal obeys, hides, or cannot show."""

import unicodedata

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def acts(character):
    """Whether a terminal obeys a character, hides it, or cannot encode it."""
    kind = unicodedata.category(character)
    return (kind in ("Cc", "Cs", "Zl", "Zp") and character not in "\n\t") or character in BIDI
