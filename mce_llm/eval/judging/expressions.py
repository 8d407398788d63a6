r"""Whether two answers in LaTeX mean the same: the judge of MATH.

`same_meaning` takes three steps. Equal writing is equal, whatever it says (`latex` knows what does not count as writing).
Two numbers are compared as exact fractions, so `0.3333` is not `1/3`. Tuples, intervals, sets, lists, unions, ratios and
matrices are taken apart here, and their elements compared in turn: order and brackets count where they mean something.
What remains, single expressions and relations, is left to algebra in a process of its own (see `symbolic`), which rounds
nothing away (`symbolic_equality`) and knows when two equations or inequalities are the same (`symbolic_statements`).

- A list in any order is the same list, of letters and words too: `\text{A, B}`, `\text{B and A}`, `\{A, B\}`, `{A,B}`.
- Words are compared as words, in small letters, and never as products of letters (`now` is not `won`); letters as
  written (`x` is not `X`), and so are three or more capitals (`ABC` is not `CAB`).
- Bases (`2516_8`) are compared as written.
- Units are taken off here, and differ where both sides have known ones that differ.
- Of an equation that answers a plain value only `name = value` or a worked sum counts: `x + 3 = 5` does not answer 5.
- `2\sqrt3 \approx 3.46` is its exact side, `x \approx 1.31` is `x = 1.31`.

It is symmetric but for what only an answer may do: give the sum with its value (`3 + 4 = 7`), an equation with a name for
a reference without one and a letter of choice with its content (`C. 5`).

Known limits: the form is not judged (an expanded product equals its factors), a missing "+ C" is wrong only
where the reference has it, and a value in other units is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from mce_llm.eval.judging.reading import Expression, number_of, read_expression
from mce_llm.eval.judging.symbolic import symbolically_equal

_LONGEST_LIST = 60
_NAME = (
    r"(?:\\angle|\\triangle|\\overline|\\hat|\\mathcal|\\max|\\min)?\s*\{?(?:\\?[A-Za-z]{1,12})\}?'*"
    r"(?:_[A-Za-z0-9]+|_\{[A-Za-z0-9]+\}|\^\{-1\}|\^[*'])*(?:\([^()=]*\))?"
)
_ASSIGNED = re.compile(rf"(?P<name>(?:\({_NAME}(?:,{_NAME})+\)|{_NAME}|)\s*)=(?P<value>[^=<>].*)", re.DOTALL)
_NAMED = re.compile(_NAME)
_CONSTANTS = ("\\pi", "e", "i")
_MEMBER = re.compile(rf"{_NAME}\\in(?![A-Za-z])\s*(?P<value>.+)")
_RELATION = re.compile(r"=|<|>|\\(?:le|ge|ne|lt|gt|equiv|approx|in|ni|subset)(?![A-Za-z])")
_OTHER_SET = re.compile(r"\\(?:mathbb|setminus|cap)(?![A-Za-z])")
_BASE = re.compile(r"(?P<digits>[0-9A-Z]+)_\{?(?P<base>\d+|[a-z]+)\}?")
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
}
_ALL_REALS = ("all real numbers", "all reals", "all real")
_CHOICE = re.compile(r"\(?(?P<letter>[A-H])\)?")
# Also "(C) 5" and "C. 5"; but "(A), (B)" are two, and "(A)+1" is a sum.
_NAMED_CHOICE = re.compile(
    r"\(?(?P<letter>[A-H])(?:[).:](?!\s*(?:[,;+*/^_=<>&!']|\\c|\(?[A-H]\)?(?![A-Za-z])))|$)"
)
_TURNED_INTERVAL = re.compile(r"([\[\]])([^\[\]]+[,;][^\[\]]+)([\[\]])")
_TIME = re.compile(r"(?P<clock>\d{1,2}:\d\d)\s*(?:(?P<half>[AaPp])\.?\s?[Mm]\.?)?")
_MATRIX = re.compile(
    r"\\begin\{(?P<kind>[pbBvV]?matrix|smallmatrix|array)\}(?:\{[lcr|]*\})?(?P<rows>(?:(?!\\begin).)*)\\end\{(?P=kind)\}",
    re.DOTALL,
)
_ROW_END = re.compile(r"\\\\(?:\[-?[\d.]+(?:pt|em|ex|mm|cm|in|mu|bp|pc)\])?|\\cr(?![A-Za-z])")
_REPEATING = re.compile(r"\d*\.\d*\\overline\{\d+\}")
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?!\d|\\overline)")
_CAPITALS = re.compile(r"[A-Z]{3,}")
_AND = re.compile(r"(?<![A-Za-z])and(?![A-Za-z])|&|\\land")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")


@dataclass(frozen=True)
class _Parts:
    """An expression taken apart: what its parts form, and the parts."""

    kind: str  # "(,)", "[,)", … with order; "set" and "union" without; "2x3" for a matrix; "one" for anything else
    items: tuple[str, ...]


def equivalent(prediction: str, gold: str) -> bool:
    """Compare two texts as `same_meaning` does.

    Args:
        prediction: The answer, in LaTeX or plain writing; `$` and units may be around it.
        gold: The reference answer.

    Returns:
        Whether they mean the same.

    Raises:
        EvaluationError: If algebra is needed and math-verify, which brings it, is not installed.
    """
    return same_meaning(read_expression(prediction), read_expression(gold))


@lru_cache(maxsize=65536)  # the same pairs come again when several samples of one question vote
def same_meaning(prediction: Expression, gold: Expression) -> bool:
    r"""Compare an answer with the reference.

    Never raises on what is written. Every text that is not blank equals itself; beyond that an answer that is too
    long, or that cannot be compared within the time limit of `symbolic`, is not equal.

    Args:
        prediction: The answer, such as `\frac{\sqrt3}{2}`.
        gold: The reference answer.

    Returns:
        Whether they mean the same.

    Raises:
        EvaluationError: If algebra is needed and math-verify, which brings it, is not installed.
    """
    if prediction.is_written_like(gold):
        return True
    if prediction.is_cut or gold.is_cut:
        return False
    ours, theirs = prediction.plain, gold.plain
    if ours.unit and theirs.unit and ours.unit != theirs.unit:
        return False
    if prediction.value is not None and gold.value is not None:
        return prediction.value == gold.value
    if ours.text and ours.text == theirs.text and ours.said == theirs.said:
        return True
    if theirs.said in _ALL_REALS or ours.said in _ALL_REALS:
        ours, theirs = (
            replace(side, text="(-\\infty,\\infty)", in_words=False) if side.said in _ALL_REALS else side
            for side in (ours, theirs)
        )
    if choice := _CHOICE.fullmatch(theirs.text):
        named = _NAMED_CHOICE.match(ours.text)
        return named is not None and named["letter"] == choice["letter"]
    if (named := _NAMED_CHOICE.match(ours.text)) and named.end() < len(ours.text) and not ours.in_words:
        ours = replace(ours, text=ours.text[named.end() :])
        if (value := number_of(ours.text)) is not None and gold.value is not None:
            return value == gold.value
    times = _TIME.fullmatch(ours.text), _TIME.fullmatch(theirs.text)
    if times[0] and times[1]:
        halves = {match["half"].lower() for match in times if match and match["half"]}
        return times[0]["clock"] == times[1]["clock"] and len(halves) < 2
    if ours.in_words or theirs.in_words:
        return bool(ours.said) and (ours.said == theirs.said or ours.items == theirs.items)
    mine, gold_text = _without_approximation(ours.text), _without_approximation(theirs.text)
    if "\\cup" in gold_text and not _AND.search(prediction.latex):
        mine = _as_union(mine)
    elif "\\cup" in mine and not _AND.search(gold.latex):
        gold_text = _as_union(gold_text)
    return _equal(mine, gold_text, 0)


def _as_union(text: str) -> str:
    r"""Write `x < 1 \text{ or } x > 2`, here `x<1,x>2`, as the union that it is."""
    pieces = _split(text, ",")
    return "\\cup ".join(pieces) if len(pieces) > 1 and all(map(_states, pieces)) else text


def _without_approximation(text: str) -> str:
    r"""Take the exact side of `2\sqrt3 \approx 3.46`; behind a name, `\approx` says what `=` does."""
    exact, sign, rest = text.partition("\\approx")
    if not sign or not exact:
        return text
    return f"{exact}={rest}" if _NAMED.fullmatch(exact) and exact not in _CONSTANTS else exact


def _equal(ours: str, theirs: str, depth: int) -> bool:
    """Compare two expressions in plain writing: numbers, writing, parts, and at last symbolically."""
    if not ours or not theirs or depth > 6:
        return False
    if depth:
        numbers = number_of(ours), number_of(theirs)
        if None not in numbers:
            return numbers[0] == numbers[1]
    if ours == theirs:
        return True
    if (simpler := _without_names(ours, theirs)) != (ours, theirs):
        return _equal(*simpler, depth + 1)
    if _BASE.fullmatch(ours) or _BASE.fullmatch(theirs):
        return _in_base(ours) == _in_base(theirs)
    mine, gold = _parts(ours), _parts(theirs)
    if mine.kind == gold.kind == "one":
        return _compare_single(ours, theirs)
    if mine.kind == gold.kind:
        return _match(mine, gold, lambda a, b: _equal(a, b, depth + 1))
    kinds = {mine.kind, gold.kind}
    if "one" in kinds and (_RELATION.search(ours + theirs) or _OTHER_SET.search(ours + theirs)):
        return _compare_single(ours, theirs)  # 1 < x < 2 and (1, 2)
    if "one" in kinds and any(kind.startswith(("determinant", "matrix")) for kind in kinds):
        return symbolically_equal(_exactly(theirs), _exactly(ours))
    if (
        kinds == {"set", "one"}
        and len(mine.items) == len(gold.items)
        and "\\emptyset" not in mine.items + gold.items
    ):
        return _equal(mine.items[0], gold.items[0], depth + 1)  # {5} and 5
    return False


def _match(mine: _Parts, gold: _Parts, same: Callable[[str, str], bool]) -> bool:
    """Compare parts one by one, or in any order where order means nothing."""
    if len(mine.items) != len(gold.items) or len(gold.items) > _LONGEST_LIST:
        return False
    if mine.kind not in ("set", "union"):
        return all(same(a, b) for a, b in zip(mine.items, gold.items, strict=True))
    left = list(mine.items)
    for item in gold.items:
        partner = next((other for other in left if same(other, item)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True


def _without_names(ours: str, theirs: str) -> tuple[str, str]:
    r"""Drop `x =`, `f(x) =` and `x \in` where the other side does without it, and sums that are worked out."""
    for pattern in (_ASSIGNED, _MEMBER):
        mine, gold = _fullmatch_one(pattern, ours), _fullmatch_one(pattern, theirs)
        if mine and gold and mine[0].removesuffix(mine["value"]) == gold[0].removesuffix(gold["value"]):
            return mine["value"], gold["value"]
        if mine and not gold and not _states(theirs):
            return mine["value"], theirs
        if gold and not mine and not _states(ours):
            return ours, gold["value"]
    sides = _split(ours, "=") if "=" in ours.strip("=") else [ours]
    if len(sides) > 1 and all(sides) and not _states(theirs) and not _has_variable(sides[0]):
        return sides[-1], theirs  # 3 + 4 = 7
    return ours, theirs


def _fullmatch_one(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Match one name and its value; of `x = 1, y = 2` the value of x is not `1, y = 2`."""
    match = pattern.fullmatch(text)
    if match and match["value"].count("{") != match["value"].count("}"):
        return None  # the index of a sum
    if match and _states(match["value"]) and len(_split(match["value"], "[,;]")) > 1:
        return None
    return match


def _states(text: str) -> bool:
    """Whether a relation stands outside all brackets: not in the index of a sum."""
    return any(
        sum(before.count(bracket) for bracket in "([{") == sum(before.count(bracket) for bracket in ")]}")
        for before in (text[: match.start()] for match in _RELATION.finditer(text))
    )


def _has_variable(side: str) -> bool:
    return re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", side)) is not None


def _in_base(text: str) -> tuple[str, str] | None:
    match = _BASE.fullmatch(text)
    return (match["digits"].lstrip("0"), _BASES.get(match["base"], match["base"])) if match else None


def _parts(text: str) -> _Parts:
    while (
        text.startswith("{") and text.endswith("}") and len(text) > 2 and _closing(text, 0) == len(text) - 1
    ):
        text = text[1:-1]
    if turned := _TURNED_INTERVAL.fullmatch(text):  # ]2, 3[ is (2, 3)
        text = f"{'(' if turned[1] == ']' else '['}{turned[2]}{')' if turned[3] == '[' else ']'}"
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in _ROW_END.split(matrix["rows"]) if row.strip()]
        cells = [row.split("&") for row in rows]
        kind = "determinant" if matrix["kind"] in ("vmatrix", "Vmatrix") else "matrix"
        shape = "x".join([str(len(cells)), *sorted({str(len(row)) for row in cells})])
        return _Parts(f"{kind} {shape}", tuple(cell.strip() for row in cells for cell in row))
    if text[:1] == text[-1:] == "|" and (matrix := _MATRIX.fullmatch(text[1:-1])):
        return replace(inner := _parts(text[1:-1]), kind=inner.kind.replace("matrix", "determinant"))
    if text[:1] == "[" and text[-1:] == "]" and _MATRIX.fullmatch(text[1:-1]):
        return _parts(text[1:-1])
    if len(pieces := _split(text, r"\\cup(?![A-Za-z])")) > 1:
        return _Parts("union", tuple(pieces))
    if text.startswith("\\{") and text.endswith("\\}") and _closing(text, 1) == len(text) - 1:
        inside = text[2:-2]
        if not inside:
            return _Parts("one", ("\\emptyset",))
        if condition := re.fullmatch(rf"{_NAME}(?:\\in[^|:]*)?(?:\\mid|\||:)(?P<rest>.+)", inside):
            return _Parts("one", (condition["rest"],))
        return _Parts("set", tuple(_with_signs(_split(inside, ","))))
    if text[0] in "([" and _closing(text, 0) == len(text) - 1:
        items = _split(text[1:-1], "[,;]")
        if len(items) > 1:
            return _Parts(f"{text[0]},{text[-1]}", tuple(items))
        if text[0] == "(" and text[-1] == ")":
            return _parts(text[1:-1]) if len(text) > 2 else _Parts("one", (text,))
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?[^,]*", text):
        return _Parts("one", (text,))  # 12,345 √2: thousands
    if len(terms := _split(text, ":")) > 2 and not _states(text):
        return _Parts(
            f"ratio of {len(terms)}", tuple(rf"\frac{{{term}}}{{{terms[0]}}}" for term in terms[1:])
        )
    items = _with_signs(_split(text, "[,;]"))
    return _Parts("set" if len(items) > 1 else "one", tuple(items) or (text,))


def _with_signs(items: list[str]) -> list[str]:
    r"""Write `a \pm b` as its two values."""
    found: list[str] = []
    for item in items:
        if item.count("\\pm") == 1 and "\\mp" not in item:
            name = _ASSIGNED.fullmatch(item)
            value = name["value"] if name else item
            found += [value.replace("\\pm", "+", 1).lstrip("+"), value.replace("\\pm", "-", 1)]
        else:
            found.append(item)
    return found


def _closing(text: str, start: int) -> int:
    """Return where the bracket at `start` is closed; an interval may close with the other kind."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position
    return -1


def _split(text: str, separator: str) -> list[str]:
    """Split where the separator stands outside all brackets."""
    pieces, last = [], 0
    for match in re.finditer(separator, text):
        before = text[: match.start()]
        if sum(before.count(bracket) for bracket in "([{") == sum(before.count(bracket) for bracket in ")]}"):
            pieces.append(text[last : match.start()])
            last = match.end()
    return [piece.strip() for piece in [*pieces, text[last:]] if piece.strip()]


def _compare_single(ours: str, theirs: str) -> bool:
    while (inner := _parts(theirs)).kind == "one" and inner.items[0] != theirs:
        theirs = inner.items[0]
    while (inner := _parts(ours)).kind == "one" and inner.items[0] != ours:
        ours = inner.items[0]
    if ours == theirs:
        return True
    if any(_WORD.search(side) or _CAPITALS.fullmatch(side) for side in (ours, theirs)):
        return False
    if _states(ours) > _states(theirs) and _parts(theirs).kind == "one":
        return False  # an equation or inequality for a value
    return symbolically_equal(_exactly(theirs), _exactly(ours))


def _exactly(text: str) -> str:
    """Write decimals as fractions, which nothing rounds."""

    def fraction(match: re.Match[str]) -> str:
        value = number_of(match[0])
        return match[0] if value is None else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

    text = _REPEATING.sub(fraction, text)
    return _DECIMAL.sub(lambda match: rf"\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}", text)
