r"""An answer in LaTeX, read once: its plain writing and, where it is one number, its exact value.

Everything that compares or records an expression starts from what `read_expression` gives. How writing is made plain
is known in `latex`, what two expressions mean in `expressions`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from mce_llm.eval.judging.latex import LONGEST_EXPRESSION, PlainLatex, plain_latex
from mce_llm.eval.judging.quantities import normalize, number_words_at, quantity_at

_REPEATING = re.compile(r"(?P<sign>-?)(?P<whole>\d*)\.(?P<once>\d*)\\overline\{?(?P<again>\d+)\}?")


@dataclass(frozen=True)
class Expression:
    r"""An answer in LaTeX or plain writing.

    Attributes:
        latex: As written, up to `LONGEST_EXPRESSION` characters.
        is_cut: Whether it was longer than that; then it equals only what is written the same.
        plain: Its plain writing.
        value: The exact value where it is one number, perhaps with a unit; otherwise None.
        whole: A digest of the whole text where it was cut; otherwise empty.
    """

    latex: str
    is_cut: bool
    plain: PlainLatex = field(compare=False)
    value: Fraction | None = field(compare=False)
    whole: str = ""

    def is_written_like(self, other: Expression) -> bool:
        """Whether two answers are the same text, spaces around it aside, and not an empty one."""
        text = self.latex.strip()
        return bool(text) and text == other.latex.strip() and self.whole == other.whole


def read_expression(latex: str) -> Expression:
    r"""Read an answer; one that was read before is remembered.

    Args:
        latex: What stands in a box or behind a marker, such as `\$32{,}348`, `2\frac{1}{2}\text{ cm}` or `0.\overline{3}`.

    Returns:
        The answer with its value, which is None where it is not one number.
    """
    whole = latex.strip()
    digest = (
        hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()
        if len(whole) > LONGEST_EXPRESSION
        else ""
    )
    return _read((whole if digest else latex)[:LONGEST_EXPRESSION], digest)


def number_of(latex: str) -> Fraction | None:
    """Return the exact value of an answer that is one number, perhaps with a unit; else None."""
    return read_expression(latex).value


# Markers read an answer before it is chosen, and the samples of one question give the same answers again.
@lru_cache(maxsize=16384)
def _read(latex: str, whole: str) -> Expression:
    plain = plain_latex(latex)
    return Expression(latex, bool(whole), plain, None if whole else _value_of(plain), whole)


def _value_of(written: PlainLatex) -> Fraction | None:
    if (words := number_words_at(written.said)) and words.end == len(written.said):
        return words.value
    if repeating := _REPEATING.fullmatch(written.text):
        once, again = repeating["once"], repeating["again"]
        value = Fraction(
            int((repeating["whole"] or "0") + once + again) - int((repeating["whole"] or "0") + once)
        )
        value /= 10 ** len(once) * (10 ** len(again) - 1)
        return -value if repeating["sign"] else value
    plain = normalize(written.text).strip()
    while plain.startswith("{") and plain.endswith("}"):
        plain = plain[1:-1]
    quantity = quantity_at(plain)
    whole = quantity is not None and quantity.start == 0 and quantity.end == len(plain)
    return quantity.value if quantity is not None and whole else None
