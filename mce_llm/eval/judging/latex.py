r"""One plain way of writing the LaTeX of a MATH answer, so that two answers can be compared as written.

`plain_latex` drops what only concerns looks or units (`\left`, `\!`, `\dfrac`, `$`, degrees, percent,
`\text{ cm}`) and turns Unicode mathematics into commands. Whether two answers mean the same is decided in
`expressions`; nothing here computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mce_llm.eval.judging.latex_commands import closing_brace, without_looks
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
_COMMANDS |= {
    "γ": "gamma",
    "δ": "delta",
    "ε": "epsilon",
    "λ": "lambda",
    "μ": "mu",
    "ρ": "rho",
    "σ": "sigma",
    "τ": "tau",
}
_COMMANDS |= {
    "ψ": "psi",
    "ω": "omega",
    "Δ": "Delta",
    "Γ": "Gamma",
    "Ω": "Omega",
    "Σ": "Sigma",
    "Π": "Pi",
    "…": "dots",
}
_COMMANDS |= {
    "≈": "approx",
    "≡": "equiv",
    "→": "to",
    "ℤ": "mathbb{Z}",
    "ℕ": "mathbb{N}",
    "ℚ": "mathbb{Q}",
    "ℂ": "mathbb{C}",
}
_UNICODE = re.compile(f"[{''.join(_COMMANDS)}]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_DEGREES = r"\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\\degree\b|°"
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|sqrt|pi|theta|infty|exp"

_SPACES = (
    r"(?<!\\)\\[!,;:> ]|(?<!\\)~|\\(?:q?quad|(?:display|text|script|scriptscript)style|(?:no)?limits|hfill|hline"
    r"|mathstrut|strut|space|enspace|enskip|(?:neg)?(?:thin|med|thick)space)(?![A-Za-z])"
)


def _primes(match: re.Match[str]) -> str:
    return "'" * (match[0].count("\\prime") + match[0].count("'"))


# Applied in this order; each takes text that the ones before it have already simplified.
_PATTERNS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"(?<=\d)\\[,;:! ](?=\d{3}(?!\d))", ""),
    (
        r"\\(?:begin|end)\s*\{(?:align|aligned|equation|gather|split|math|displaymath)\*?\}|\\(?:no)?number\b",
        " ",
    ),
    (r"(?<!\\)\\[()\[\]]|(?:\b(?:US|AU|CA|NZ|HK))?\\?\$|[€£¥₹]|&(?==)", " "),
    (
        r"\\(?:bf|it|rm|sf|underline|overbrace|underbrace|cancel|tiny|small|normalsize|large|Large|LARGE|huge|Huge)"
        r"(?![A-Za-z])",
        " ",
    ),
    (r"^\s*(?:\\approx\b|≈|~|\\sim\b)", " "),
    (r"(?<=\d)(?:st|nd|rd|th)\b", ""),
    (r"(?<=\d)\s+x\s+(?=\d)", r" \\cdot "),
    (_SPACES, " "),
    (r"\\(?:left|right)\s*\.", " "),
    (r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![A-Za-z])", ""),
    (r"\\(?:l|r)vert\b", "|"),
    (r"\\[lr]?Vert(?![A-Za-z])", r"\\|"),
    (r"\(\s*\\?mod(?![A-Za-z])\s*(\w+)\s*\)|\\pmod\s*(\w)", r"\\pmod{\1\2}"),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\lbrack(?![A-Za-z])", "["),
    (r"\\rbrack(?![A-Za-z])", "]"),
    (r"\\langle\b", "("),
    (r"\\rangle\b", ")"),
    (r"\\(?:leqslant|leqq|leq)(?![A-Za-z])", r"\\le"),
    (r"\\(?:geqslant|geqq|geq)(?![A-Za-z])", r"\\ge"),
    (r"\\neq(?![A-Za-z])|\\not\s*=", r"\\ne "),
    (r"\\(?:ldots|cdots|dotsc|dotsb|dotso|hdots)(?![A-Za-z])|\.\.\.+", r"\\dots "),
    (r"\\(?:simeq|doteq|thickapprox|approxeq)(?![A-Za-z])", r"\\approx"),
    (r"\\(?:smallsetminus|backslash)(?![A-Za-z])", r"\\setminus"),
    (r"\\mathbb\s*([A-Z])(?![A-Za-z])|\\([RNZQ])(?![A-Za-z])", r"\\mathbb{\1\2}"),
    (r"\\(?:lor|land)(?![A-Za-z])", " , "),
    (r"\\lg(?![A-Za-z])", r"\\log_{10}"),
    (r"\\(arc)?tg(?![A-Za-z])", r"\\\1tan"),
    (r"\\colon(?![A-Za-z])", ":"),
    (r"\^\s*(?:\\prime(?![A-Za-z])|\{\s*((?:\\prime(?![A-Za-z])\s*)+|'+)\})", _primes),
    (r"\\(?:times|ast|cdotp)\b", r"\\cdot"),
    (
        rf"(?P<function>\\(?:sin|cos|tan|cot|sec|csc))\s*(?P<open>[({{])?\s*(?P<angle>\d+(?:\.\d+)?)\s*(?:{_DEGREES})"
        r"\s*(?(open)[)}])",
        r"\g<function>(\\frac{\g<angle>\\pi}{180})",
    ),
    (r"\*\*", "^"),
    (r"\*", r"\\cdot "),
    (r"\\(?:varnothing|O)\b", r"\\emptyset"),
    (rf"{_DEGREES}|\\circ\b|\\?%", ""),
    (rf"(?<![\\A-Za-z])(?:{_FUNCTIONS})(?![A-Za-z])", r"\\\g<0> "),
    (r"(?<![\\A-Za-z])(?:infinity|Infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\d+|[A-Za-z])(?![A-Za-z])", r"\\sqrt{\1}"),
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (
        r"(?:^|(?<=[=(\[,{<>;])|(?<=\\l[et])|(?<=\\g[et])|(?<=\\in))\s*\+(?=\s*[^\s)\]},+])",
        " ",
    ),  # +5, (+2, +∞)
    (r"\^\{(\w)\}", r"^\1"),
    (r"_\{(\w)\}(?![A-Za-z0-9])", r"_\1"),
    (r"(?<!\\log)_(\d{2,})", r"_{\1}"),
]
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in _PATTERNS]
# 11,\! 111 and 11{,}111 are thousands, whatever else the answer is.
_TEMPERATURE = re.compile(rf"(?:{_DEGREES})\s*(?:\\text\{{\s*)?(?P<scale>[CF])(?![A-Za-z])\s*\}}?")
_THOUSANDS = re.compile(r",\s*\\!\s*(?=\d)|\{,\}\s*(?=\d)")
_TEXT = re.compile(r"\\text\{([^{}]*)\}(?:\^(?:\d|\{\d\}))?")
_JOINED_LETTER = re.compile(r",?\s*(?:and|or)\s+(\(?[^\W\d_]\)?)")
_AMPERSAND = r"\\?&"
_LETTERS = re.compile(
    r"\s*\(?[^\W\d_]\)?[.:]?(?:(?:\s*(?:[,;]|\\?&)\s*(?:(?:and|or)\b)?|\s+(?:and|or)\b)\s*\(?[^\W\d_]\)?[.:]?)+\s*"
)
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
# What stands upright behind a number as a unit: m/s, kg, cm^2; not d or e.
_ONE_UNIT = "(?:" + "|".join(sorted(map(re.escape, _UNIT_NAMES), key=len, reverse=True)) + ")(?![A-Za-z])"
_UPRIGHT_UNIT = re.compile(
    rf"[\\ ~]*{_ONE_UNIT}(?:(?:\\cdot(?![a-z])|[\\ ~.,·])*(?:/[\\ ~]*{_ONE_UNIT}|\^\{{?-?\d\}}?|{_ONE_UNIT})){{0,6}}[\\ ~]*"
)
_WRITTEN_UNIT = re.compile(
    r"(?:(?<=[\d)}])|(?<=\\pi))\s*(?P<unit>[A-Za-z]{1,}\.?)(?:\s*\^\s*\{?\d\}?|[\s/-]+[A-Za-z]+\.?){0,4}\s*$"
)
_SENTENCE = re.compile(r"[^\W\d_][\w .,:;'()&/-]*")
_SOME_WORD = re.compile(r"[^\W\d_]{2}|[^\W\d_a-zA-Z]")
_BETWEEN_ITEMS = re.compile(r"[,;&]|(?<!\w)(?:and|or)(?!\w)", re.IGNORECASE)
_PROSE = re.compile(r"\s[\s/-]*(?!thousand|million|billion|trillion)[A-Za-z]{4}")


@dataclass(frozen=True)
class PlainLatex:
    """An answer in plain writing.

    Attributes:
        text: The LaTeX without looks, texts and units; spaces only where they separate.
        said: What it says when read as words, in lower case; empty where it cannot be read so.
        in_words: Whether it must be read so, and is not a product of letters.
        unit: The unit written behind it, by its usual name, where it is a known one; otherwise empty.
        items: What it says as a list, sorted: `red and blue` lists what `blue, red` does.
    """

    text: str
    said: str
    in_words: bool
    unit: str
    items: tuple[str, ...] = ()


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
    text = without_looks(text.replace("\n", " ").strip(" *_`"), _UPRIGHT_UNIT)
    text = _without_outer_braces(re.sub(r"_\{?\\text\{(\w+)\}\}?", r"_{\1}", text))
    said = _spoken(text)
    unit = ""
    if temperature := _TEMPERATURE.search(text):
        unit = temperature["scale"]
        text = _TEMPERATURE.sub("", text)

    def without_text(match: re.Match[str]) -> str:
        nonlocal unit
        content = match[1].strip()
        if _CONJUNCTION.fullmatch(content):
            return " , "
        if re.fullmatch(r"\(?[A-Z]\)?[.:]?|i|:", content):
            return f" {content} "
        if _LETTERS.fullmatch(content):
            return f" {re.sub(_AMPERSAND, ',', content)} "
        if joined := _JOINED_LETTER.fullmatch(content):
            return f" , {joined[1]} "
        if any(character.isdigit() for character in content) and not _UPRIGHT_UNIT.fullmatch(content):
            return f" {content} "
        unit = unit or _unit_of(content)
        return " "

    plain = _without_outer_braces(_simplified(_TEXT.sub(without_text, _THOUSANDS.sub("", text))))
    if written := _WRITTEN_UNIT.search(plain):
        name = _unit_of(written["unit"]) if len(written["unit"]) > 1 else ""
        if name or _PROSE.search(written[0]):
            plain, unit = plain[: written.start()], unit or name or _unit_of(written[0])
    plain = _listed(plain)
    if not (plain or said.words):  # nothing but a text that looked like a unit
        plain = _listed(_simplified(_TEXT.sub(r" \1 ", text)))
        unit = ""
    return PlainLatex(plain, said.words, said.only_words, unit, said.items)


def _simplified(text: str) -> str:
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def _listed(text: str) -> str:
    return _without_spaces(re.sub(r"\s+(?:and|or)\s+", " , ", text))


def _without_outer_braces(text: str) -> str:
    text = text.strip()
    while text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _unit_of(words: str) -> str:
    for word in re.findall(r"[a-z.]+", words.lower()):
        if word in _UNIT_NAMES:
            return _UNIT_NAMES[word]
    return ""


@dataclass(frozen=True)
class _Said:
    """What an answer says when read as words."""

    words: str = ""
    only_words: bool = False  # whether it must be read so: it stands in a text, or its words are long
    items: tuple[str, ...] = ()


def _spoken(text: str) -> _Said:
    inside = _TEXT.sub(lambda match: f" {match[1]} ", text)
    inside = re.sub(rf"{_SPACES}|\\[()\[\]]|[$]", " ", inside)
    inside = _without_outer_braces(inside).strip(" .,:;")
    if not _SENTENCE.fullmatch(inside) or not _SOME_WORD.search(inside):
        return _Said()
    items = [re.sub(r"[\W_]+", " ", item).strip().lower() for item in _BETWEEN_ITEMS.split(inside)]
    in_text = any(
        _SOME_WORD.search(_BETWEEN_ITEMS.sub(" ", match[1])) and not _CONJUNCTION.fullmatch(match[1].strip())
        for match in _TEXT.finditer(text)
    )
    long_words = re.search(r"[^\W\d_]{4}", inside) and not re.search(
        rf"(?<![A-Za-z])(?:{_FUNCTIONS}|infinity|Infinity)(?![A-Za-z])", inside
    )
    words = re.sub(r"[\W_]+", " ", inside).strip().lower()
    return _Said(words, in_text or bool(long_words), tuple(sorted(filter(None, items))))


def _without_spaces(text: str) -> str:
    r"""Drop the spaces that separate nothing: not those of `1 1/2` and `\sin x`."""
    text = re.sub(r"\s+", " ", text).strip(" ,;:").rstrip(" .")
    kept = re.sub(
        r"(\\[A-Za-z]+) (?=[A-Za-z])|(?<=\d) (?=\d)|(?P<space> )",
        lambda match: "" if match["space"] else match[0],
        text,
    )
    return kept.removesuffix("\\").strip(" ,;:").rstrip(".")
