"""Arithmetic word problems with worked solutions, made up by rule: enough for a small model to learn.

The records have GSM8K's format. Training and test problems are apart by construction: a hash of the
problem's kind and its numbers decides where it belongs, whatever the seed, the names and the story.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mce_llm.data.errors import DataError
from mce_llm.running.messages import nearest_hint

# Of 10 parts by hash: 8 for training, 1 each for the others.
_PARTS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
SPLITS = tuple(_PARTS)
"""The splits that can be asked for."""

# fmt: off
_NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack",
    "Kate", "Leo", "Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor",
)
_OBJECTS = (
    "apples", "books", "buttons", "cards", "coins", "cookies", "eggs", "flowers",
    "marbles", "pears", "pencils", "plums", "shells", "stamps", "stickers", "stones",
)
# fmt: on

_LARGEST_FACTOR = 9

Option = TypeVar("Option")


@dataclass(frozen=True)
class _Kind:
    """A kind of problem: its stories, and the calculation over the numbers a, b and c."""

    name: str
    operators: str
    stories: tuple[str, ...]

    def steps(self, numbers: tuple[int, ...]) -> list[tuple[int, str, int, int]]:
        """Return ``(left, operator, right, result)`` for each step."""
        value, steps = numbers[0], []
        for operator, number in zip(self.operators, numbers[1:], strict=True):
            result = _OPERATIONS[operator](value, number)
            steps.append((value, operator, number, result))
            value = result
        return steps


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
}

_KINDS = (
    _Kind(
        "add",
        "+",
        (
            "{name} has {a} {things}. A friend gives {name} {b} more {things}. "
            "How many {things} does {name} have now?",
            "{name} finds {a} {things} in the morning and {b} {things} in the evening. "
            "How many {things} does {name} find that day?",
        ),
    ),
    _Kind(
        "subtract",
        "-",
        (
            "{name} has {a} {things} in a box and gives {b} of them to {other}. "
            "How many {things} does {name} have left?",
            "There are {a} {things} on the table, and {name} takes {b} of them away. "
            "How many {things} stay on the table?",
        ),
    ),
    _Kind(
        "multiply",
        "*",
        (
            "{name} has {b} bags, and there are {a} {things} in each bag. "
            "How many {things} does {name} have in all?",
            "{name} buys {a} {things} every day for {b} days. How many {things} does {name} buy in these days?",
        ),
    ),
    _Kind(
        "add_add",
        "++",
        (
            "{name} has {a} {things}, gets {b} more from {other} and then buys {c} more. "
            "How many {things} does {name} have now?",
        ),
    ),
    _Kind(
        "add_subtract",
        "+-",
        (
            "{name} has {a} {things}, finds {b} more and then gives {c} of them to {other}. "
            "How many {things} does {name} have left?",
            "There are {a} {things} in a basket. {name} puts in {b} and {other} takes out {c}. "
            "How many {things} are in the basket?",
        ),
    ),
    _Kind(
        "subtract_add",
        "-+",
        (
            "{name} has {a} {things}, loses {b} of them and later buys {c} new {things}. "
            "How many {things} does {name} have now?",
        ),
    ),
    _Kind(
        "multiply_add",
        "*+",
        (
            "{name} has {b} boxes with {a} {things} in each and {c} more {things} outside. "
            "How many {things} does {name} have in all?",
        ),
    ),
    _Kind(
        "multiply_subtract",
        "*-",
        (
            "{name} fills {b} boxes with {a} {things} each and then gives {c} {things} to {other}. "
            "How many {things} does {name} have left?",
        ),
    ),
)


def problem_split(kind: str, numbers: tuple[int, ...]) -> str:
    """Return the split that owns a problem: ``"train"``, ``"validation"`` or ``"test"``.

    Args:
        kind: The kind of problem, such as ``"add_subtract"``.
        numbers: Its numbers. Their order does not count, so that 7 + 5 and 5 + 7 are never apart.

    Returns:
        The split.
    """
    key = f"{kind}:{','.join(str(number) for number in sorted(numbers))}"
    part = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return next(split for split, parts in _PARTS.items() if part in parts)


@dataclass(frozen=True)
class ArithmeticProblems:
    """A source of problems, the same for the same settings on every machine and Python version.

    Attributes:
        seed: Which problems, names and stories are drawn, and in what order.
        max_number: The largest number in a question, 10 to 100; the two factors of a product are at most
            half of it, and at most 9. No value on the way is negative or has more than three digits.
        steps: How many calculations a problem may take: 1, 2 or both.
    """

    seed: int = 0
    max_number: int = 20
    steps: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if not 10 <= self.max_number <= 100:
            raise DataError(f"max_number must be between 10 and 100, got {self.max_number}; 20 is easy")
        if not self.steps or not set(self.steps) <= {1, 2}:
            raise DataError(f"steps must be (1,), (2,) or (1, 2), got {self.steps}")

    def stream(self, split: str = "train") -> Iterator[dict[str, str]]:
        """Yield problems of a split, no question twice, until no new one is found.

        Args:
            split: One of `SPLITS`.

        Yields:
            ``question`` and ``answer``; the answer holds one calculation a line and ends in ``#### N``.

        Raises:
            DataError: The split is unknown.
        """
        if split not in _PARTS:
            raise DataError(
                f"unknown split {split!r}{nearest_hint(split, SPLITS)}; choose one of {', '.join(SPLITS)}"
            )
        digest = hashlib.sha256(f"{self.seed}:{split}".encode()).digest()
        # Only Random.random() is promised to be the same in every Python version, so nothing else is used.
        generator = random.Random(int.from_bytes(digest[:8], "big"))
        kinds = [kind for kind in _KINDS if len(kind.operators) in self.steps]
        seen: set[str] = set()
        misses = 0
        while misses < 10_000:
            kind = _pick(generator, kinds)
            numbers = self._numbers(kind, generator)
            if problem_split(kind.name, numbers) != split:
                continue
            question = _tell(kind, numbers, generator)
            if question in seen:
                misses += 1
                continue
            misses = 0
            seen.add(question)
            yield {"question": question, "answer": _solve(kind, numbers)}

    def _numbers(self, kind: _Kind, generator: random.Random) -> tuple[int, ...]:
        largest_factor = min(_LARGEST_FACTOR, self.max_number // 2)
        largest = largest_factor if kind.operators[0] == "*" else self.max_number
        numbers = [_draw(generator, 2, largest)]
        value = numbers[0]
        for operator in kind.operators:
            least, most = 1, self.max_number
            if operator == "*":
                least, most = 2, largest_factor
            elif operator == "-":
                most = min(value, self.max_number)
            numbers.append(_draw(generator, least, most))
            value = _OPERATIONS[operator](value, numbers[-1])
        return tuple(numbers)


def generate_problems(
    count: int,
    *,
    split: str = "train",
    seed: int = 0,
    max_number: int = 20,
    steps: tuple[int, ...] = (1, 2),
) -> list[dict[str, str]]:
    """Generate problems in GSM8K's format.

    Problems of different splits never share a kind with the same numbers, whatever the seeds.

    Args:
        count: How many; a smaller count gives the beginning of a larger one.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        seed: Which problems are drawn.
        max_number: The largest number in a question.
        steps: How many calculations a problem may take.

    Returns:
        Records with ``question`` and ``answer``, no question twice.

    Raises:
        DataError: An argument cannot be used, or there are not so many different questions.
    """
    if count < 1:
        raise DataError(f"count must be at least 1, got {count}")
    stream = ArithmeticProblems(seed, max_number, steps).stream(split)
    problems = [problem for _, problem in zip(range(count), stream, strict=False)]
    if len(problems) < count:
        raise DataError(
            f"found only {len(problems)} different questions for split {split!r}, asked for {count}; raise "
            f"max_number (now {max_number}) or lower count"
        )
    return problems


def _draw(generator: random.Random, least: int, most: int) -> int:
    return least + int(generator.random() * (most - least + 1))


def _pick(generator: random.Random, options: Sequence[Option]) -> Option:
    return options[_draw(generator, 0, len(options) - 1)]


def _tell(kind: _Kind, numbers: tuple[int, ...], generator: random.Random) -> str:
    story = _pick(generator, kind.stories)
    name = _pick(generator, _NAMES)
    other = _pick(generator, [person for person in _NAMES if person != name])
    words = dict(zip("abc", numbers, strict=False))
    return story.format(name=name, other=other, things=_pick(generator, _OBJECTS), **words)


def _solve(kind: _Kind, numbers: tuple[int, ...]) -> str:
    steps = kind.steps(numbers)
    lines = [f"{left} {operator} {right} = {result}" for left, operator, right, result in steps]
    return "\n".join([*lines, f"#### {steps[-1][-1]}"])
