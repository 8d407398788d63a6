r"""Eight worked examples for each task, for prompts that show how to answer.

They were written for this package, so that prompts need no training split and no download. Papers that report
"8-shot" accuracies mostly use the examples of Wei et al. (2022, arXiv 2201.11903): for figures to set beside theirs,
pass those in a file.
"""

from __future__ import annotations

import re

from mce_llm.data import DataError, load_examples
from mce_llm.eval.errors import EvaluationError

Shot = tuple[str, str]
"""A question and its solution."""

SHOTS: dict[str, tuple[Shot, ...]] = {
    "gsm8k": (
        (
            "A bakery fills 6 trays with 12 rolls each and sells 57 of the rolls. How many rolls are left?",
            "The bakery fills 6 * 12 = 72 rolls into its trays. After selling 57 it has 72 - 57 = 15 rolls left. "
            "The answer is 15.",
        ),
        (
            "Nadia reads 18 pages on Monday and twice as many on Tuesday. Her book has 90 pages. How many pages does "
            "she still have to read?",
            "On Tuesday she reads 2 * 18 = 36 pages. Together that is 18 + 36 = 54 pages. So 90 - 54 = 36 pages remain. "
            "The answer is 36.",
        ),
        (
            "A taxi costs $4 to get in and $2.50 for each mile. How much does a ride of 8 miles cost?",
            "The miles cost 8 * 2.50 = 20 dollars. With the 4 dollars to get in, the ride costs 20 + 4 = 24 dollars. "
            "The answer is 24.",
        ),
        (
            "Three friends share 5 pizzas that are cut into 12 slices each. How many slices does each friend get?",
            "There are 5 * 12 = 60 slices. Each of the 3 friends gets 60 / 3 = 20 slices. The answer is 20.",
        ),
        (
            "A coat of $80 is sold at 25% off. How much does it cost now?",
            "The discount is 25% of 80, which is 80 / 4 = 20 dollars. The coat now costs 80 - 20 = 60 dollars. "
            "The answer is 60.",
        ),
        (
            "Omar is 9 years older than his sister. In 4 years she will be 15. How old is Omar today?",
            "His sister is 15 - 4 = 11 years old today. Omar is 11 + 9 = 20 years old. The answer is 20.",
        ),
        (
            "A pump moves 45 liters a minute. How many hours does it take to empty a pool of 8100 liters?",
            "It takes 8100 / 45 = 180 minutes. An hour has 60 minutes, so that is 180 / 60 = 3 hours. The answer is 3.",
        ),
        (
            "Of 40 students, half play football, and a quarter of the others play tennis. How many students play neither?",
            "Half of 40 is 20 students who play football, so 40 - 20 = 20 do not. A quarter of these, 20 / 4 = 5, play "
            "tennis. So 20 - 5 = 15 play neither. The answer is 15.",
        ),
    ),
    "math": (
        (
            r"Solve $3x - 7 = 2x + 5$ for $x$.",
            r"Subtracting $2x$ from both sides gives $x - 7 = 5$, so $x = 12$. The answer is $\boxed{12}$.",
        ),
        (
            r"What is $\frac{3}{4} + \frac{1}{6}$, in lowest terms?",
            r"Over the common denominator 12 the sum is $\frac{9}{12} + \frac{2}{12} = \frac{11}{12}$. "
            r"The answer is $\boxed{\frac{11}{12}}$.",
        ),
        (
            r"Find the area of a circle whose circumference is $10\pi$.",
            r"From $2\pi r = 10\pi$ we get $r = 5$. The area is $\pi r^2 = 25\pi$. The answer is $\boxed{25\pi}$.",
        ),
        (
            r"Factor $x^2 - 5x + 6$.",
            r"We need two numbers with product 6 and sum 5: they are 2 and 3. So $x^2 - 5x + 6 = (x-2)(x-3)$. "
            r"The answer is $\boxed{(x-2)(x-3)}$.",
        ),
        (
            r"For which real numbers $x$ is $\sqrt{4 - x^2}$ defined as a real number? Write an interval.",
            r"We need $4 - x^2 \ge 0$, that is $x^2 \le 4$, which holds for $-2 \le x \le 2$. "
            r"The answer is $\boxed{[-2,2]}$.",
        ),
        (
            r"How many ways are there to choose a committee of 3 from 7 people?",
            r"The number of ways is $\binom{7}{3} = \frac{7 \cdot 6 \cdot 5}{3 \cdot 2 \cdot 1} = 35$. "
            r"The answer is $\boxed{35}$.",
        ),
        (
            r"Simplify $\sqrt{50} - \sqrt{8}$.",
            r"We have $\sqrt{50} = 5\sqrt{2}$ and $\sqrt{8} = 2\sqrt{2}$, so the difference is $3\sqrt{2}$. "
            r"The answer is $\boxed{3\sqrt{2}}$.",
        ),
        (
            r"What is the remainder when $2^{10}$ is divided by $7$?",
            r"Since $2^3 = 8$ leaves remainder 1, so does $2^9$, and $2^{10} = 2 \cdot 2^9$ leaves remainder 2. "
            r"The answer is $\boxed{2}$.",
        ),
    ),
}
"""Task → examples."""


DEFAULT = "default"
"""In place of a file: the examples of this package."""
_BARE = re.compile(r"The answer is (\d+)\.$")


def chosen_shots(
    task: str, path: str | None = None, number: int | None = None, *, boxed: bool = False
) -> tuple[Shot, ...] | None:
    r"""Return the worked examples that are to be shown.

    Args:
        task: A key of `SHOTS`: whose examples `DEFAULT` means.
        path: A file, or `DEFAULT`; by default `DEFAULT` where a number is asked for.
        number: The first so many; by default all.
        boxed: Write the final answers of our own examples as `\boxed{…}`, for a prompt that asks for that.

    Returns:
        The examples, or None where none were asked for.

    Raises:
        DataError: If a file cannot be read, or holds conversations.
        EvaluationError: If there are fewer than `number`.
    """
    if path is None and number is None:
        return None
    if path in (None, DEFAULT):
        shots = SHOTS[task]
        if boxed:
            shots = tuple((asked, _BARE.sub(r"The answer is $\\boxed{\1}$.", told)) for asked, told in shots)
    else:
        shots = load_shots(str(path))
    if number is not None and number > len(shots):
        raise EvaluationError(
            f"num_shots is {number}, and there are {len(shots)} worked examples in {path or DEFAULT}; give a file with "
            "more as shots"
        )
    return shots[:number]


def load_shots(path: str) -> tuple[Shot, ...]:
    """Read worked examples from a file.

    Args:
        path: A file that `load_examples` reads: question and response, or GSM8K's or MATH's own format.

    Returns:
        Question and solution of each record.

    Raises:
        DataError: If it cannot be read, or holds conversations.
    """
    examples = load_examples(path)
    if "response" not in examples.column_names:
        raise DataError(f"{path}: worked examples need a question and a response, these are conversations")
    return tuple(zip(examples["question"], examples["response"], strict=True))
