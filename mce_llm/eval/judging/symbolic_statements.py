r"""Whether two things read by `symbolic_reading` mean the same: statements, sets, matrices, expressions.

- Two equations are equal where their sides are, exchanged or moved over and up to a constant factor that is not zero:
  `y = 2x+3` and `4x - 2y + 6 = 0`. Having the same solutions is not enough, for two without any would then be equal.
- Two inequalities are equal up to a positive factor, and up to a negative one where they are turned round.
- Chains are equal where their relations are, one by one in any order: `5 > x > 1` and `1 < x < 5`.
- A statement without unknowns (`2+2=4`) equals only one with the same sides.
- A solved relation (`x > 2`, `-2 \le x < 7`, `x \ne 3`) equals the set of its solutions; `x + 3 > 5` does not, as
  the question would answer itself.

Used by `symbolic_worker` alone.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from mce_llm.eval.judging.symbolic_equality import equal, is_real, match_in_any_order, points, vanishes
from mce_llm.eval.judging.symbolic_reading import Statement, read

_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_SETS = (sympy.Set, sympy.Tuple)


def mean_the_same(gold: str, prediction: str) -> bool:
    """Compare two texts.

    Args:
        gold: The reference, in plain LaTeX.
        prediction: The answer.

    Returns:
        Whether they are equal. Errors of many types are raised where one of them cannot be read.
    """
    return _same(read(gold), read(prediction))


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Statement) and isinstance(second, Statement):
        return _same_statements(first, second)
    if isinstance(first, Statement) or isinstance(second, Statement):
        statement, other = (first, second) if isinstance(first, Statement) else (second, first)
        solutions = _solutions(statement) if isinstance(other, sympy.Set) else None
        return solutions is not None and _same_sets(solutions, other)
    if isinstance(first, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(
        second, sympy.MatrixBase | sympy.MatrixExpr
    ):
        return _same_matrices(first, second)
    if isinstance(first, _SETS) or isinstance(second, _SETS):
        return isinstance(first, _SETS) and isinstance(second, _SETS) and _same_sets(first, second)
    return equal(first, second)


def _same_matrices(first: Any, second: Any) -> bool:
    first, second = first.doit(), second.doit()
    if not (isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase)):
        return bool(first == second)
    return first.shape == second.shape and all(map(equal, first.flat(), second.flat()))


def _same_sets(first: Any, second: Any) -> bool:
    if isinstance(first, sympy.Tuple) or isinstance(second, sympy.Tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(_same, first, second))
    first, second = _simple(first), _simple(second)
    if first == second:
        return True
    if isinstance(first, sympy.FiniteSet) and isinstance(second, sympy.FiniteSet):
        return match_in_any_order(list(first.args), list(second.args), _same)
    if isinstance(first, sympy.Interval) and isinstance(second, sympy.Interval):
        return (
            bool(first.left_open == second.left_open and first.right_open == second.right_open)
            and equal(first.start, second.start)
            and equal(first.end, second.end)
        )
    parts = (sympy.Union, sympy.Intersection, sympy.Complement)
    if isinstance(first, parts) and type(first) is type(second):
        if isinstance(first, sympy.Complement):
            return all(map(_same_sets, first.args, second.args))
        return match_in_any_order(list(first.args), list(second.args), _same_sets)
    return False


def _simple(given: Any) -> Any:
    given = given.doit()
    return sympy.Interval(-sympy.oo, sympy.oo) if given == sympy.S.Reals else given


def _solutions(statement: Statement) -> Any | None:
    """Return the set that a solved relation describes: one side is the unknown, the others are numbers."""
    unknowns = [
        position
        for position, side in enumerate(statement.sides)
        if isinstance(side, sympy.Symbol | AppliedUndef)
    ]
    rest = [side for position, side in enumerate(statement.sides) if position not in unknowns]
    if len(unknowns) != 1 or any(getattr(side, "free_symbols", None) for side in rest):
        return None
    at = unknowns[0]
    if at > 1 or len(statement.sides) > at + 2 or (at == 0 and len(statement.sides) > 2):
        return None
    found: Any = sympy.S.Reals
    if at == 1:
        found = _half_line(_TURNED.get(statement.operators[0]), statement.sides[0])
    if found is not None and at + 1 < len(statement.sides):
        further = _half_line(statement.operators[at], statement.sides[at + 1])
        found = None if further is None else found.intersect(further)
    return found


def _unknown(statement: Statement) -> Any:
    return next(side for side in statement.sides if isinstance(side, sympy.Symbol | AppliedUndef))


def _half_line(operator: str | None, end: Any) -> Any | None:
    if operator == "in":
        return end if isinstance(end, sympy.Set) else None
    if isinstance(end, sympy.Set):
        return None
    end = end.doit()
    lines = {
        "<": lambda: sympy.Interval.open(-sympy.oo, end),
        "<=": lambda: sympy.Interval(-sympy.oo, end),
        ">": lambda: sympy.Interval.open(end, sympy.oo),
        ">=": lambda: sympy.Interval(end, sympy.oo),
        "=": lambda: sympy.FiniteSet(end),
        "!=": lambda: sympy.Union(sympy.Interval.open(-sympy.oo, end), sympy.Interval.open(end, sympy.oo)),
    }
    return lines[operator]() if operator in lines else None


def _same_statements(first: Statement, second: Statement) -> bool:
    if ("in" in first.operators) != ("in" in second.operators):  # x \in [1,2] and 1 \le x \le 2
        sets = _solutions(first), _solutions(second)
        return None not in sets and _unknown(first) == _unknown(second) and _same_sets(*sets)
    if all(operator == "=" for operator in first.operators + second.operators) and len(first.sides) > 2:
        return match_in_any_order(list(first.sides), list(second.sides), _same)
    return match_in_any_order(_relations(first), _relations(second), _same_relations)


def _relations(statement: Statement) -> list[tuple[Any, str, Any]]:
    return list(zip(statement.sides, statement.operators, statement.sides[1:], strict=False))


def _same_relations(first: tuple[Any, str, Any], second: tuple[Any, str, Any]) -> bool:
    left, operator, right = first
    other_left, other_operator, other_right = second
    if operator == other_operator and _same(left, other_left) and _same(right, other_right):
        return True
    if "in" in (operator, other_operator):
        return False
    if _TURNED[operator] == other_operator and _same(left, other_right) and _same(right, other_left):
        return True
    if operator not in (other_operator, _TURNED[other_operator]):
        return False
    if not all(isinstance(side, sympy.Expr) for side in (left, right, other_left, other_right)):
        return False
    factor = _constant_factor(left - right, other_left - other_right)
    if factor is None or not is_real(factor):
        return False
    if operator in ("=", "!="):
        return True
    positive = bool(sympy.re(factor.evalf(30)) > 0)
    return positive if operator == other_operator else not positive


def _constant_factor(first: Any, second: Any) -> Any | None:
    """Return the number that the second expression must be multiplied by to give the first, where there is one."""
    functions = first.atoms(AppliedUndef) | second.atoms(AppliedUndef)
    names = {function: sympy.Dummy(real=True) for function in sorted(functions, key=str)}
    first, second = first.doit().xreplace(names), second.doit().xreplace(names)
    unknowns = sorted(first.free_symbols | second.free_symbols, key=str)
    if not unknowns or not _varies(first, unknowns) or not _varies(second, unknowns):
        return None
    for point in points(unknowns):
        one, other = first.subs(point), second.subs(point)
        try:
            if vanishes(one, 60) or vanishes(other, 60):
                continue
        except (
            ArithmeticError,
            NotImplementedError,
        ):  # one has no number here, so that no factor is to be had
            continue
        factor = one / other
        return factor if equal(first, factor * second) else None
    return None


def _varies(expression: Any, unknowns: list[Any]) -> bool:
    """Whether an expression depends on its unknowns: x - x does not."""
    values = [expression.subs(point) for point in points(unknowns)[:3]]
    return not all(equal(values[0], value) for value in values[1:])
