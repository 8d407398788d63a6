r"""What stands in `\boxed{…}`: read by the data (references of MATH) and by the evaluation (answers).

Standard library only. What the content means is decided in `mce_llm.eval`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST_CONTENT = 1000  # characters; longer is a degenerate generation, not an answer

_BOX = re.compile(
    r"\\(?:f?boxed|fbox)\s*"
    r"(?:(?P<brace>\{)|(?P<bare>-?\\?\$?\.?\d[\d,]*(?:\.\d+)?|\\[a-z]+(?:\{[^{}]*\}|\d)*))"
)


def boxed_contents(text: str) -> Iterator[tuple[str, int]]:
    r"""Give what stands in each `\boxed{…}`, `\boxed 5` and `\fbox{…}`; of nested ones the innermost.

    Args:
        text: A solution.

    Yields:
        Each content, and where its box ends in the text. A box that is empty or not closed is left out.
    """
    for match in _BOX.finditer(text):
        if match["bare"]:
            yield match["bare"], match.end()
            continue
        depth, position = 1, match.end()
        while position < min(len(text), match.end() + LONGEST_CONTENT) and depth:
            if text[position] == "\\":  # \{ and \} are brackets of the answer, not of LaTeX
                position += 2
                continue
            depth += (text[position] == "{") - (text[position] == "}")
            position += 1
        content = text[match.end() : position - 1].strip()
        if not depth and content and not _BOX.search(content):
            yield content, position
