r"""One plain way of writing the LaTeX of a MATH answer, so that two answers can be compared as written.

`plain_latex` drops what only concerns looks or units (`\left`, `\!`, `\dfrac`, `$`, degrees, percent,
`\text{ cm}`) and turns Unicode mathematics into commands. Whether two answers mean the same is decided in
`expressions`; nothing here computes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mce_llm.eval.judging.quantities import plain_characters

LONGEST_EXPRESSION = 1000  # characters; a longer one is a degenerate generation, not an answer

_COMMANDS = {
    "π": "pi",
    "θ": "theta",
    "α": "alpha",
    "β": "beta",
    "φ": "phi",
    "∞": "infty",
    "≤": "le",
    "≥": "ge",
}
_COMMANDS |= {"≠": "ne", "×": "cdot", "·": "cdot", "⋅": "cdot", "÷": "div", "±": "pm", "∪": "cup", "∩": "cap"}
_COMMANDS |= {
    "∈": "in",
    "ℝ": "mathbb{R}",
    "∅": "emptyset",
    "√": "sqrt",
    "∠": "angle",
    "⟨": "langle",
    "⟩": "rangle",
}
_UNICODE = re.compile(f"[{''.join(_COMMANDS)}]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROMAN = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|vec|overrightarrow|operatorname|mathrm|mathit|mathsf|rm|bf)\s*\{([^{}]*)\}"
)
_DEGREES = r"\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\\degree\b|°"
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|sqrt|pi|theta|infty|exp"
# Applied in this order; each takes text that the ones before it have already simplified.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(?<=\d)\\[,;:! ](?=\d{3}(?!\d))", ""),
        (
            r"\\(?:begin|end)\s*\{(?:align|aligned|equation|gather|split|math|displaymath)\*?\}|\\(?:no)?number\b",
            " ",
        ),
        (r"(?<!\\)\\[()\[\]]|(?:\b(?:US|AU|CA|NZ|HK))?\\?\$|[€£¥₹]|&(?==)", " "),
        (r"\\(?:bf|it|rm|sf|underline|overbrace|underbrace|cancel)(?![A-Za-z])", " "),
        (r"^\s*(?:\\approx\b|≈|~|\\sim\b)", " "),
        (r"(?<=\d)(?:st|nd|rd|th)\b|°\s*[CF]\b", ""),
        (r"(?<=\d)\s+x\s+(?=\d)", r" \\cdot "),
        (
            r"(?<!\\)\\[!,;:> ]|(?<!\\)~|\\(?:quad|qquad|displaystyle|textstyle|limits|hfill|mathstrut|strut)\b",
            " ",
        ),
        (r"\\(?:phantom|hspace|vspace|label|tag)\*?\s*\{[^{}]*\}", " "),
        (r"\\(?:left|right)\s*\.", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![A-Za-z])", ""),
        (r"\\(?:l|r)vert\b", "|"),
        (r"\\(?:lbrace|lbrack)\b", r"\\{"),
        (r"\\(?:rbrace|rbrack)\b", r"\\}"),
        (r"\\langle\b", "("),
        (r"\\rangle\b", ")"),
        (r"\\[dtc]frac\b", r"\\frac"),
        (r"\\dbinom\b|\\tbinom\b", r"\\binom"),
        (r"\\(?:leqslant|leq)\b", r"\\le"),
        (r"\\(?:geqslant|geq)\b", r"\\ge"),
        (r"\\neq\b", r"\\ne"),
        (r"\\(?:times|ast|cdotp)\b", r"\\cdot"),
        (
            rf"(?P<function>\\(?:sin|cos|tan|cot|sec|csc))\s*[({{]?\s*(?P<angle>\d+)\s*(?:{_DEGREES})\s*[)}}]?",
            r"\g<function>(\\frac{\g<angle>\\pi}{180})",
        ),
        (r"\*\*", "^"),
        (r"\*", r"\\cdot "),
        (r"\\(?:varnothing|O)\b", r"\\emptyset"),
        (_ROMAN, r" \1 "),
        (rf"{_DEGREES}|\\circ\b|\\?%", ""),
        (rf"(?<![\\A-Za-z])(?:{_FUNCTIONS})(?![A-Za-z])", r"\\\g<0> "),
        (r"(?<![\\A-Za-z])(?:infinity|Infinity)(?![A-Za-z])", r"\\infty "),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\d+|[A-Za-z])(?![A-Za-z])", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d|[A-Za-z])", r"\1{\2}"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\^\{(\w)\}", r"^\1"),
        (r"_\{(\w+)\}", r"_\1"),
    ]
]
# 11,\! 111 and 11{,}111 are thousands, whatever else the answer is.
_THOUSANDS = re.compile(r",\s*\\!\s*(?=\d)|\{,\}\s*(?=\d)")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mbox|hbox|emph)\s*\{([^{}]*)\}(?:\^\{?\d\}?)?")
_CONJUNCTION = re.compile(r"\s*,?\s*(?:and|or|&)\s*", re.IGNORECASE)
_UNITS = {
    "cm": ("cm", "centimeter", "centimetre"), "mm": ("mm", "millimeter", "millimetre"),
    "km": ("km", "kilometer", "kilometre"), "m": ("m", "meter", "metre"), "in": ("in", "inch", "inches"),
    "ft": ("ft", "foot", "feet"), "yd": ("yd", "yard"), "mi": ("mi", "mile"),
    "s": ("s", "sec", "second"), "min": ("min", "minute"), "h": ("h", "hr", "hour"), "day": ("day",),
    "week": ("week",), "month": ("month",), "year": ("year", "yr"), "g": ("g", "gram"),
    "kg": ("kg", "kilogram"), "mg": ("mg", "milligram"), "lb": ("lb", "pound"), "oz": ("oz", "ounce"),
    "l": ("liter", "litre"), "ml": ("ml", "milliliter", "millilitre"), "dollar": ("dollar",),
    "cent": ("cent",), "mph": ("mph",), "degree": ("degree", "deg"), "radian": ("radian", "rad"),
}  # fmt: skip
_UNIT_NAMES = {
    spelling: name
    for name, words in _UNITS.items()
    for word in words
    for spelling in (word, f"{word}s", f"{word}.")
}
_WRITTEN_UNIT = re.compile(
    r"(?:(?<=[\d)}])|(?<=\\pi))\s*(?P<unit>[A-Za-z]{1,}\.?)(?:\s*\^\s*\{?\d\}?|[\s/-]+[A-Za-z]+\.?){0,4}\s*$"
)
_PROSE = re.compile(r"\s[\s/-]*(?!thousand|million|billion|trillion)[A-Za-z]{4}")


@dataclass(frozen=True)
class PlainLatex:
    """An answer in plain writing.

    Attributes:
        text: The LaTeX without looks, texts and units; spaces only where they separate.
        said: What it says when read as words, in lower case; empty where it cannot be read so.
        in_words: Whether it must be read so, and is not a product of letters.
        unit: The unit written behind it, by its usual name, where it is a known one; otherwise empty.
    """

    text: str
    said: str
    in_words: bool
    unit: str


def plain_latex(latex: str) -> PlainLatex:
    r"""Write an answer plainly.

    Args:
        latex: What stands in a box or behind a marker, such as `\dfrac{1}{2}\text{ cm}`.

    Returns:
        Its plain writing; the text is empty where nothing is left.
    """
    text = plain_characters(latex[:LONGEST_EXPRESSION])
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub(r"√(\w+)", r"\\sqrt{\1}", text)
    text = _UNICODE.sub(lambda match: f"\\{_COMMANDS[match[0]]} ", text)
    text = re.sub(r"_\{?\s*\\text\s*\{(\w+)\}\s*\}?", r"_{\1}", text.replace("\n", " ").strip(" *_`"))
    said, in_words = _spoken(text)
    unit = ""

    def without_text(match: re.Match[str]) -> str:
        nonlocal unit
        content = match[1].strip()
        if _CONJUNCTION.fullmatch(content):
            return " , "
        if re.fullmatch(r"\(?[A-Z]\)?[.:]?|i|:", content) or any(
            character.isdigit() for character in content
        ):
            return f" {content} "
        unit = unit or _unit_of(content)
        return " "

    text = _TEXT.sub(without_text, _THOUSANDS.sub("", text))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if written := _WRITTEN_UNIT.search(text):
        name = _unit_of(written["unit"]) if len(written["unit"]) > 1 else ""
        if name or _PROSE.search(written[0]):
            text, unit = text[: written.start()], unit or name or _unit_of(written[0])
    text = re.sub(r"\s+(?:and|or)\s+", " , ", text)
    return PlainLatex(_without_spaces(text), said, in_words, unit)


def _unit_of(words: str) -> str:
    for word in re.findall(r"[a-z.]+", words.lower()):
        if word in _UNIT_NAMES:
            return _UNIT_NAMES[word]
    return ""


def _spoken(text: str) -> tuple[str, bool]:
    r"""Return what an answer says when read as words, and whether it must be read so: `\text`, or long words."""
    inside = _TEXT.sub(lambda match: f" {match[1]} ", text)
    inside = _ROMAN.sub(r" \1 ", inside)
    inside = re.sub(r"\\[ ,;!]|[$]", " ", inside).strip(" .,:;")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 .,:;'()/-]*", inside) or not re.search(r"[A-Za-z]{2}", inside):
        return "", False
    said = re.sub(r"[^A-Za-z0-9]+", " ", inside).strip().lower()
    in_text = any(
        re.search(r"[A-Za-z]{2}", match[1]) and not _CONJUNCTION.fullmatch(match[1])
        for match in _TEXT.finditer(text)
    )
    long_words = re.search(r"[A-Za-z]{4}", inside) and not re.search(
        rf"(?<![A-Za-z])(?:{_FUNCTIONS})(?![A-Za-z])", inside
    )
    return said, in_text or bool(long_words)


def _without_spaces(text: str) -> str:
    r"""Drop the spaces that separate nothing: not those of `1 1/2` and `\sin x`."""
    text = re.sub(r"\s+", " ", text).strip(" ,;:").rstrip(" .")
    kept = re.sub(
        r"(\\[A-Za-z]+) (?=[A-Za-z])|(?<=\d) (?=\d)|(?P<space> )",
        lambda match: "" if match["space"] else match[0],
        text,
    )
    return kept.removesuffix("\\").strip(" ,;:").rstrip(".")
