r"""Whether two sympy expressions are equal, decided without rounding.

Two expressions are equal where their difference is zero. A difference without unknowns is simplified exactly first
(integers, fractions and powers of them are never rounded); what remains is evaluated with as much precision as it takes
to tell it from zero, up to `_DIGITS` digits beyond those that cancel. So `1/52!` and `1/51!`, `e^{-200}` and `e^{-201}`
differ however small they are. A difference with unknowns is evaluated at fixed points, each in this way: expressions are
equal where they have the same real values and are real at the same points.

Known limits: two irrational numbers that agree in their first `_DIGITS` digits, or where a function other than the
elementary ones is involved `_DIGITS_OF_OTHERS`, count as equal; so do two expressions that differ at none of the points,
which no rational expression does but by design. An integral or a sum that has no closed form equals only what has
the same form. Used by `symbolic_worker` alone.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy.core.evalf import PrecisionExhausted
from sympy.core.function import AppliedUndef

_DIGITS = 1000
_DIGITS_OF_OTHERS = 60
_DIGITS_AT_POINTS = 200
_MOST_POINTS = 12
_ENOUGH_POINTS = 4
_ELEMENTARY = (
    sympy.Add, sympy.Mul, sympy.Pow, sympy.exp, sympy.log, sympy.Abs, sympy.Number, sympy.NumberSymbol,
    sympy.core.numbers.ImaginaryUnit, sympy.functions.elementary.trigonometric.TrigonometricFunction,
    sympy.functions.elementary.trigonometric.InverseTrigonometricFunction,
    sympy.functions.elementary.hyperbolic.HyperbolicFunction,
)  # fmt: skip
_WITHOUT_CLOSED_FORM = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative, sympy.Subs)
_UNDEFINED = (sympy.nan, sympy.zoo)
# Values of the unknowns: small and large, of both signs, no two related. Roots and logarithms want positive ones.
_POINTS = [
    sympy.Rational(*pair)
    for pair in [(3, 7), (11, 5), (13, 17), (29, 19), (23, 31), (47, 37), (5, 41), (59, 43), (61, 3), (7, 67)]
]
_SCALES = [
    (1, 1, 1, 1), (1, 1, 1, 1), (10, 10, 10, 10), (-1, -1, -1, -1), (1, -1, 1, -1), (-1, 1, -1, 1), (100, 1, 10, 1),
    (1, 100, 1, 10), (-10, 1, 1, -1), (1, -10, -1, 1), (1000, 1000, 1000, 1000), (-7, -3, -7, -3),
]  # fmt: skip


def equal(first: Any, second: Any) -> bool:
    """Compare two expressions.

    Args:
        first: An expression without relations, sets or matrices.
        second: Another.

    Returns:
        Whether they are equal; False where one of them is undefined or nothing could be decided.
    """
    complex_numbers = first.has(sympy.I) or second.has(sympy.I)
    if not complex_numbers:
        first, second = _with_real_roots(first), _with_real_roots(second)
    first, second = first.doit(), second.doit()
    if undefined(first) or undefined(second):
        return bool(first == second) and first in (sympy.oo, -sympy.oo)
    if first == second:
        return True
    functions = sorted(first.atoms(AppliedUndef) | second.atoms(AppliedUndef), key=str)
    names = {function: sympy.Dummy(real=True) for function in functions}
    first, second = first.xreplace(names), second.xreplace(names)
    difference = first - second
    if difference.has(*_WITHOUT_CLOSED_FORM):
        return bool(sympy.simplify(difference) == 0)
    unknowns = sorted(difference.free_symbols, key=str)
    if not unknowns:
        return vanishes(difference, _DIGITS)
    return _equal_at_points(first, second, complex_numbers, unknowns)


def undefined(expression: Any) -> bool:
    """Whether an expression contains infinity, but as the limit of a sum or an integral, or nothing at all, such as `1/0`."""
    infinite = expression.has(sympy.oo, -sympy.oo) and not expression.has(*_WITHOUT_CLOSED_FORM)
    return bool(infinite or expression.has(*_UNDEFINED))


def vanishes(number: Any, digits: int) -> bool:
    """Whether an expression without unknowns is zero, with the limits that the module tells.

    Args:
        number: The expression.
        digits: How many digits to compute at most.

    Returns:
        Whether it is zero.

    Raises:
        ArithmeticError: If it is undefined.
    """
    if undefined(number):
        raise ArithmeticError("undefined")
    if number.is_Rational:
        return bool(number == 0)
    if any(not isinstance(part, _ELEMENTARY) for part in sympy.preorder_traversal(number)):
        digits = min(digits, _DIGITS_OF_OTHERS)
    # A logarithm so near 0 that its argument rounds to 1 evaluates to 0 as if that were exact. Hence no zero is believed
    # before the last precision, and no other value before a higher precision gives the same.
    earlier = None
    for precision in [30, 60, digits // 2, digits]:
        try:
            value = number.evalf(precision, maxn=max(digits, precision), strict=True)
        except PrecisionExhausted:
            return True
        if not value.is_number or undefined(value) or value.atoms(sympy.Function):
            raise ArithmeticError("not evaluated")
        if earlier is not None and value != 0 and abs(value - earlier) <= abs(value) * sympy.Float("1e-20"):
            return False
        earlier = value
    return bool(earlier == 0)


def points(unknowns: list[Any]) -> list[dict[Any, Any]]:
    """Give values of the unknowns at which expressions are compared; always the same ones.

    Args:
        unknowns: Symbols.

    Returns:
        A dictionary of values for each point.
    """
    found = []
    for turn, scales in enumerate(_SCALES[:_MOST_POINTS]):
        found.append(
            {
                unknown: _POINTS[(position + turn) % len(_POINTS)] * scales[position % len(scales)]
                + position // len(_POINTS)
                for position, unknown in enumerate(unknowns)
            }
        )
    return found


def _equal_at_points(first: Any, second: Any, complex_numbers: bool, unknowns: list[Any]) -> bool:
    agreed, both_not_real = 0, 0
    for point in points(unknowns):
        one, other = first.subs(point), second.subs(point)
        if not complex_numbers:
            one, other = _with_real_roots(one), _with_real_roots(other)
        try:
            if vanishes(one - other, _DIGITS_AT_POINTS):
                agreed += 1
                continue
            if complex_numbers or is_real(one) or is_real(other):
                return False
            both_not_real += 1
        except (ArithmeticError, NotImplementedError):  # no number at this point, which may be so for both
            if undefined(one) != undefined(other):
                return False
    if agreed + both_not_real == 0:
        return bool(sympy.simplify(first - second) == 0)
    return agreed >= _ENOUGH_POINTS or not both_not_real


def is_real(number: Any) -> bool:
    """Whether a number has no imaginary part to speak of."""
    real, imaginary = number.evalf(30).as_real_imag()
    return bool(abs(imaginary) <= abs(real) * sympy.Float("1e-20"))


def _with_real_roots(expression: Any) -> Any:
    """Take odd roots of negative numbers as real ones: the cube root of -8 is -2."""

    def is_odd_root(part: Any) -> bool:
        if not (part.is_Pow and part.exp.is_Rational and part.exp.q > 1 and part.exp.q % 2 == 1):
            return False
        return bool(part.base.is_number and part.base.is_negative)

    def real_root(part: Any) -> Any:
        return sympy.Integer(-1) ** part.exp.p * sympy.Pow(-part.base, part.exp)

    return expression.replace(is_odd_root, real_root) if expression.has(sympy.Pow) else expression


def match_in_any_order(first: list[Any], second: list[Any], same: Any) -> bool:
    """Whether each of some things has a partner of its own among others.

    Args:
        first: Some things.
        second: Others.
        same: Whether two of them are partners.

    Returns:
        Whether they pair up.
    """
    if len(first) != len(second):
        return False
    left = list(second)
    for item in first:
        partner = next((position for position, other in enumerate(left) if same(item, other)), None)
        if partner is None:
            return False
        del left[partner]
    return True
