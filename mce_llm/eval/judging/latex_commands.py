r"""Commands of LaTeX that take arguments: those for looks are taken off, fractions and roots get their braces.

Arguments are found as TeX finds them: a group with its inner groups, a command, or one character. So `\boldsymbol{\frac12}`
becomes `\frac{1}{2}`, and `{\color{red} 5}` becomes 5. What does not depend on arguments is known in `latex`.
"""

from __future__ import annotations

import re

_FRACTIONS = {"frac", "dfrac", "tfrac", "cfrac", "nicefrac", "sfrac", "flatfrac"}
_BINOMIALS = {"binom", "dbinom", "tbinom"}
_ROMAN = {"mathrm", "mathsf", "mathit", "operatorname", "rm"}
_KEPT = _ROMAN | {
    "mathbf", "boldsymbol", "bm", "pmb", "vec", "overrightarrow", "bf", "mathtt", "mathnormal", "mathop", "mathrel",
    "mathbin", "mathord", "mathopen", "mathclose", "mathinner", "ensuremath", "boxed", "fbox", "framebox",
}  # fmt: skip
_TEXTS = {
    "text", "textbf", "textit", "textrm", "textnormal", "textsf", "texttt", "textsc", "textup", "textmd", "mbox", "hbox",
    "emph", "intertext",
}  # fmt: skip
# Of these the arguments before the last one that counts say nothing: command → (arguments, whether the last is kept).
_FOR_LOOKS = {
    "color": (1, False), "textcolor": (2, True), "colorbox": (2, True), "fcolorbox": (3, True), "phantom": (1, False),
    "hphantom": (1, False), "vphantom": (1, False), "hspace": (1, False), "vspace": (1, False), "label": (1, False),
    "tag": (1, False), "rule": (2, False), "require": (1, False), "raisebox": (2, True), "scalebox": (2, True),
}  # fmt: skip
_STACKED = {"underset": "_", "overset": "^", "stackrel": "^"}
# Of plain TeX: {\rm cm}, {1 \over 2}, {n \choose k}.
_OLD_FORMS = [
    (re.compile(r"\{\s*\\rm(?![A-Za-z])([^{}]*)\}"), r"\\mathrm{\1}"),
    (
        re.compile(r"\{([^{}\\]*(?:\\(?!over|choose)[^{}\\]*)*)\\over(?![A-Za-z])([^{}]*)\}"),
        r"\\frac{\1}{\2}",
    ),
    (
        re.compile(r"\{([^{}\\]*(?:\\(?!over|choose)[^{}\\]*)*)\\choose(?![A-Za-z])([^{}]*)\}"),
        r"\\binom{\1}{\2}",
    ),
]
_RELATION_SIGN = re.compile(
    r"\s*(?:[=<>:]|\\[a-z]*(?:le|ge|ne|lt|gt|eq|approx|sim|to|arrow|equiv|cong)[a-z]*)+\s*"
)
_COMMAND = re.compile(r"\\(?P<name>[A-Za-z]+)\*?")
_BRACE = re.compile(r"(?<!\\)[{}]")
_ARGUMENTS_OF = dict.fromkeys(_FRACTIONS | _BINOMIALS, 2) | {"sqrt": 1} | dict.fromkeys(_TEXTS | _KEPT, 1)


def without_looks(latex: str, is_unit: re.Pattern[str]) -> str:
    r"""Take off commands that only concern looks, and write texts as `\text{…}` and fractions as `\frac{…}{…}`.

    Args:
        latex: An answer.
        is_unit: Matches what is a unit when it stands upright behind a number (`5\mathrm{m/s}`).

    Returns:
        The same answer; a command without the arguments that it needs is left as it is.
    """
    for pattern, replacement in _OLD_FORMS:
        latex = pattern.sub(replacement, latex)
    # From the last command to the first, so that the arguments of each are plain already.
    for match in reversed(list(_COMMAND.finditer(latex))):
        name, start = match["name"], match.start()
        before = start
        while before and latex[before - 1] == "\\":
            before -= 1
        if (start - before) % 2:
            continue  # \\frac is a line break and a word
        replaced = _replacement(latex, name, start, match.end(), is_unit)
        if replaced is not None:
            latex = latex[:start] + replaced[0] + latex[replaced[1] :]
    return latex


def _replacement(
    latex: str, name: str, start: int, end: int, is_unit: re.Pattern[str]
) -> tuple[str, int] | None:
    if name in _FOR_LOOKS:
        count, is_kept = _FOR_LOOKS[name]
        read = _arguments(latex, _behind_option(latex, end), count)
        return read and (f" {{{read[0][-1]}}} " if is_kept else " ", read[1])
    if name in _STACKED:
        read = _arguments(latex, end, 2)
        if read is None:
            return None
        above, base = read[0]
        sign = _RELATION_SIGN.fullmatch(base)
        if sign:
            return f" {base} ", read[1]
        kept = base if re.fullmatch(r"\\[A-Za-z]+|\w", base.strip()) else f"{{{base}}}"
        return f"{kept.strip()}{_STACKED[name]}{{{above}}}", read[1]
    if name in _FRACTIONS or name in _BINOMIALS:
        read = _arguments(latex, _behind_option(latex, end), 2)
        if read is None:
            return None
        written = f"\\{'frac' if name in _FRACTIONS else 'binom'}{{{read[0][0]}}}{{{read[0][1]}}}"
        raised = latex[max(0, start - 9) : start].rstrip()[-1:] in ("^", "_")
        return (f"{{{written}}}" if raised else written), read[1]
    if name == "sqrt" and latex[end:].lstrip()[:1] == "\\":
        read = _arguments(latex, end, 1)
        return read and (f"\\sqrt{{{read[0][0]}}}", read[1])
    if name in _TEXTS and latex[end:].lstrip()[:1] == "{":
        read = _arguments(latex, end, 1)
        if read is None:
            return None
        content = _BRACE.sub("", read[0][0].replace("\\text{", "{"))
        return f"\\text{{{content}}}", read[1]
    if name in _KEPT and (name not in ("rm", "bf") or latex[end:].lstrip()[:1] == "{"):
        read = _arguments(latex, end, 1)
        if read is None:
            return None
        behind_number = re.search(r"[\d)}~]\s*(?:\\[ ,;:!]\s*)*$", latex[max(0, start - 20) : start])
        if name in _ROMAN and behind_number and is_unit.fullmatch(read[0][0]):
            return f"\\text{{{read[0][0]}}}", read[1]
        return f" {read[0][0]} ", read[1]
    return None


def _behind_option(latex: str, position: int) -> int:
    option = re.compile(r"\s*\[[^\[\]{}]*\](?=\s*\{)").match(latex, position)
    return option.end() if option else position


def _arguments(latex: str, position: int, count: int) -> tuple[list[str], int] | None:
    """Read some arguments, and return them with where they end; None where one is missing."""
    found = []
    for _ in range(count):
        read = _argument(latex, position)
        if read is None:
            return None
        found.append(read[0])
        position = read[1]
    return found, position


def _argument(latex: str, position: int) -> tuple[str, int] | None:
    while position < len(latex) and latex[position].isspace():
        position += 1
    if position >= len(latex) or latex[position] in "}^_&":
        return None
    if latex[position] == "{":
        end = closing_brace(latex, position)
        return None if end < 0 else (latex[position + 1 : end], end + 1)
    if latex[position] != "\\":
        return latex[position], position + 1
    command = _COMMAND.match(latex, position)
    if command is None:
        return None
    end = command.end()
    if inner := _ARGUMENTS_OF.get(command["name"]):
        read = _arguments(latex, _behind_option(latex, end), inner)
        end = read[1] if read else end
    return latex[position:end], end


def closing_brace(latex: str, start: int) -> int:
    r"""Return where the brace at `start` is closed, or -1; `\{` and `\}` are none."""
    depth, position = 0, start
    while position < len(latex):
        if latex[position] == "\\":
            position += 2
            continue
        depth += (latex[position] == "{") - (latex[position] == "}")
        if depth == 0:
            return position
        position += 1
    return -1
