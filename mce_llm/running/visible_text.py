"""Text of others as it may be printed: what could steer a terminal or hide what is written is shown, not obeyed.

Questions, answers, paths and settings come from files. A control character among them can clear the screen, change the
window's title or write over the line before; a bidirectional override shows digits in another order than they stand.
"""

from __future__ import annotations

import json
import re
from typing import IO, Any

# C0 without tab and line feed, DEL and C1; marks and overrides of writing direction; characters without width that
# join nothing; line and paragraph separators; halves of surrogate pairs, which no output can encode; tag characters.
_UNSEEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
_PATTERN = re.compile(f"[{_UNSEEN}]")
_LINES = re.compile(f"[{_UNSEEN}\t\n]")
_NAMES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def visible(text: str, *, one_line: bool = False) -> str:
    r"""Return a text with every character that a terminal would act on, or not show, written out.

    Args:
        text: Any text.
        one_line: Write out line feeds and tabs, too.

    Returns:
        The text with `\x1b`, `\u202e` and the like in place of such characters; all others as they are.
    """
    return (_LINES if one_line else _PATTERN).sub(_written_out, text)


def json_text(content: Any) -> str:
    """Return indented JSON for a terminal: letters as they are, what `visible` would write out as JSON's own escapes.

    Args:
        content: Anything that JSON can hold.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return _PATTERN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def print_visible(text: str, file: IO[str] | None = None) -> None:
    """Print a text with `visible`, and flush.

    Args:
        text: One or more lines.
        file: Where to; by default stdout.
    """
    print(visible(text), file=file, flush=True)


def _written_out(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    if character in _NAMES:
        return _NAMES[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
