r"""Plain LaTeX read into sympy, strictly: what the grammar would drop or misread is refused.

The grammar is latex2sympy2_extended's, which math-verify brings. Left to itself it takes `2(3)` for the mixed number
5, `\gamma` for a constant, `I` for the imaginary unit and `X` for `x`, and drops transposes, primes, dots and the base of
`2516_8`; two different texts would then be one expression. Relations are split here and their sides read one by one,
because the grammar gives only a side of some. Used by `symbolic_worker` alone, in whose process sympy lives.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy

_END_OF_TOKENS = -1  # as antlr4 numbers it
_COMMANDS = frozenset(
    "frac sqrt cdot times div pm mp sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh "  # noqa: SIM905
    "arcsinh arccosh arctanh arsinh arcosh artanh log ln exp pi infty alpha beta gamma delta epsilon varepsilon zeta eta "
    "theta vartheta iota kappa lambda mu nu xi rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta "
    "Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar cup cap setminus mathbb emptyset begin end binom lfloor "
    "rfloor lceil rceil overline bar hat tilde widehat vec mathcal sum prod int lim to gcd lcm max min mod text".split()
)
_RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    "lt": "<",
    "gt": ">",
    "le": "<=",
    "ge": ">=",
    "ne": "!=",
    "in": "in",
}
_RELATION = re.compile(r"[=<>]|\\(?:lt|gt|le|ge|ne|in)(?![A-Za-z])")
_UNREADABLE = re.compile(
    r"(?<![_\d])\d+\s+\.?\d"  # read as a mixed number
    r"|\d_|\d\s*\}_"  # a base, which is dropped
    r"|!\s*!|\.\s*\.|:.*:"
)
_PRIMED = re.compile(
    r"(?P<letter>[A-Za-z]|\\[A-Za-z]+)(?:_(?:\{(?P<long>\w+)\}|(?P<index>\w)))?(?P<primes>'+)"
)

# What the grammar takes for something else: Euler's constant, a transpose, a function named π. An accent makes a symbol
# of any name.
_REWRITES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (
        re.compile(r"\\gamma(?![A-Za-z])|\\Gamma(?![A-Za-z]|\s*\()"),
        lambda match: rf"\hat{{the{match[0][1:]}}}",
    ),
    (re.compile(r"\^(?:T|\{T\})"), "^{(T)}"),
    (re.compile(r"\\(?:pi|infty)\s*(?=\()"), r"\g<0>\\cdot "),
]


class UnreadableError(ValueError):
    """A text that is no expression, or one that the grammar would not read as it stands."""


@dataclass(frozen=True)
class Statement:
    """A relation or a chain of them: `1 < x < 5` has three sides and two operators."""

    sides: tuple[Any, ...]
    operators: tuple[str, ...]


class _Reader(_Latex2Sympy):
    """The grammar's reader, without what would make different texts the same."""

    def __init__(self) -> None:
        super().__init__(is_real=True, config=ConversionConfig(lowercase_symbols=False))
        self.parsers: list[Any] = []

    def create_parser(self, latex_str: str) -> Any:
        parser = super().create_parser(latex_str)
        self.parsers.append(parser)
        return parser

    def convert_postfix_list(self, arr: list[Any], i: int = 0) -> Any:
        """Take a number before a fraction for a mixed one, and any other two factors for a product."""
        if i + 1 < len(arr) and arr[i].getText().isdigit() and not arr[i + 1].getText().startswith("\\frac"):
            return self.mul_flat(self.convert_postfix(arr[i]), self.convert_postfix_list(arr, i + 1))
        if i + 1 < len(arr) and not arr[i].getText().isdigit():
            first = self.convert_postfix(arr[i])
            if getattr(first, "is_Integer", False):
                return self.mul_flat(first, self.convert_postfix_list(arr, i + 1))
        return super().convert_postfix_list(arr, i)

    def convert_atom_expr(self, atom_expr: Any) -> Any:
        letter = atom_expr.LETTER_NO_E() if hasattr(atom_expr, "LETTER_NO_E") else None
        if letter is not None and letter.getText() == "I":
            index, power = atom_expr.subexpr(), atom_expr.supexpr()
            symbol = sympy.Symbol("I" + (index.getText() if index else ""), real=True)
            if power is None:
                return symbol
            exponent = self.convert_expr(power.expr()) if power.expr() else self.convert_atom(power.atom())
            return sympy.Pow(symbol, exponent, evaluate=False)
        return super().convert_atom_expr(atom_expr)


def read(latex: str) -> Any:
    """Read a text.

    Args:
        latex: An expression, a set, a matrix or a relation, in plain writing (see `latex`).

    Returns:
        A sympy object, or a `Statement` where a relation stands outside all brackets.

    Raises:
        UnreadableError: If the grammar does not read all of it as it stands; other errors are sympy's.
    """
    sides, operators, last = [], [], 0
    for match in _RELATION.finditer(latex):
        if _depth(latex[: match.start()]) == 0:
            sides.append(latex[last : match.start()])
            operators.append(_RELATIONS[match[0].lstrip("\\")])
            last = match.end()
    sides.append(latex[last:])
    if not operators:
        return _read_side(latex)
    return Statement(tuple(map(_read_side, sides)), tuple(operators))


def _depth(text: str) -> int:
    return sum(text.count(bracket) for bracket in "([{") - sum(text.count(bracket) for bracket in ")]}")


def _read_side(latex: str) -> Any:
    unknown = [name for name in re.findall(r"\\([A-Za-z]+)", latex) if name not in _COMMANDS]
    if unknown or _UNREADABLE.search(latex):
        raise UnreadableError(latex)
    text = _with_powers(_PRIMED.sub(_as_index, latex))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if ":" in text:
        first, _, second = text.partition(":")
        text = rf"\frac{{{first}}}{{{second}}}"
    reader = _Reader()
    value = reader.parse(text)
    if any(parser.getTokenStream().LA(1) != _END_OF_TOKENS for parser in reader.parsers):
        raise UnreadableError(latex)
    if not isinstance(value, sympy.Basic | sympy.MatrixBase) or value in (sympy.true, sympy.false):
        raise UnreadableError(latex)
    names: set[Any] = getattr(value, "free_symbols", set())
    # i is read as a symbol like any other, so that i² would not be -1.
    value = value.subs({name: sympy.I for name in names if name.name == "i"})
    floats = {number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)}
    derivatives = {
        derivative: sympy.Symbol(str(derivative), real=True)
        for derivative in value.atoms(sympy.Derivative)
        if not derivative.expr.has(*derivative.variables)  # dy/dx, which would be 0
    }
    return value.xreplace({**floats, **derivatives}) if floats or derivatives else value


def _as_index(match: re.Match[str]) -> str:
    r"""Write `f'` as a letter with an index, for the grammar drops primes."""
    index = (match["long"] or match["index"] or "") + "p" * len(match["primes"])
    return f"{match['letter']}_{{{index}}}"


def _with_powers(text: str) -> str:
    """Write `2^(n-1)` as `2^{n-1}`."""
    start = 0
    while (at := text.find("^(", start)) >= 0:
        depth = 0
        for end in range(at + 1, len(text)):
            depth += (text[end] in "([{") - (text[end] in ")]}")
            if depth == 0:
                text = f"{text[: at + 1]}{{{text[at + 2 : end]}}}{text[end + 1 :]}"
                break
        start = at + 2
    return text
