"""Several answers to each question: majority votes and pass@k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any


@dataclass(frozen=True)
class Majority:
    """The outcome of majority votes.

    Attributes:
        k: Votes a question.
        accuracy: Mean over the questions of the chance that the vote is right, ties broken by lot: an m-fold tie that
            the right answer is part of counts 1/m.
        ties: Questions whose largest groups are equally large.
        no_votes: Questions without any answer to vote with; they count as wrong.
    """

    k: int
    accuracy: float
    ties: int
    no_votes: int


def majority(
    questions: Sequence[Sequence[dict[str, Any]]], group: Callable[[Sequence[str | None]], list[list[int]]]
) -> Majority:
    """Let the samples of each question vote with their answers, as `predicted` holds them.

    Args:
        questions: The items of each question.
        group: Groups equal answers, the largest group first (`Task.vote`).

    Returns:
        What came of it.
    """
    total, ties, no_votes = 0.0, 0, 0
    for items in questions:
        groups = group([item["predicted"] for item in items])
        first = [places for places in groups if len(places) == len(groups[0])]
        ties += len(first) > 1
        no_votes += not groups
        if first:
            total += sum(items[places[0]]["correct"] for places in first) / len(first)
    return Majority(len(questions[0]), total / len(questions), ties, no_votes)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Estimate without bias the chance that at least one of k answers is right, from n answers.

    1 − C(n−c, k) / C(n, k). Chen et al. (2021), arXiv 2107.03374, equation 1.

    Args:
        n: Answers.
        correct: Right ones, c.
        k: At most n.

    Returns:
        The estimate.

    Raises:
        ValueError: If not 1 ≤ k ≤ n and 0 ≤ correct ≤ n.
    """
    if not (1 <= k <= n and 0 <= correct <= n):
        raise ValueError(
            f"pass@k needs 1 <= k <= n and 0 <= correct <= n, got n={n}, correct={correct}, k={k}"
        )
    return 1 - comb(n - correct, k) / comb(n, k)


def pass_at(corrects: Sequence[int], n: int) -> dict[str, float]:
    """Return pass@k, mean over questions, for k = 1, 2, 4, … and n.

    Args:
        corrects: Right answers of each question.
        n: Answers to each.

    Returns:
        k, as a string as in JSON, → estimate.
    """
    powers = [1 << power for power in range(n.bit_length()) if 1 << power < n]
    return {
        str(k): sum(pass_at_k(n, correct, k) for correct in corrects) / len(corrects) for k in [*powers, n]
    }
