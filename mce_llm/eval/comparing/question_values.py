"""What each question contributes to a measure: (n,) numbers whose mean over questions is the measure.

Ratios of sums over tokens, Σ nats / Σ tokens, become nats_q / mean(tokens). Which tokens there are follows from the data
and the tokenizer, so the denominator is the same number for every run that can be compared, and not a random one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from mce_llm.eval.comparing.measures import MEASURES, Measure
from mce_llm.eval.errors import EvaluationError

_SUMS = ("tokens", "nats", "top1", "entropy")
_BINS = ("tokens", "confidence", "top1")
_CALIBRATION = ("ece", "ece_debiased")
_MOST_TOLD = 3


@dataclass(frozen=True)
class TokenSums:
    """Sums over the tokens of each question's reference solution: lines of a likelihood's `items.jsonl` as columns.

    Attributes:
        groups: Of each group of tokens `tokens`, `nats`, `top1` and `entropy`, each (n,) float64.
        calibration: Of each group that has it `tokens`, `confidence` and `top1`, each (n, bins) float64: how many tokens
            fell into a bin of confidence, the sum of their confidences, and how many were right.
    """

    groups: Mapping[str, Mapping[str, np.ndarray]]
    calibration: Mapping[str, Mapping[str, np.ndarray]]

    @classmethod
    def of(cls, items: Sequence[Mapping[str, Any]]) -> TokenSums:
        """Take the columns of the lines of one run.

        Args:
            items: One a question, with `groups` and, where calibration was measured, `calibration`; further fields are
                not looked at.

        Returns:
            The columns.

        Raises:
            EvaluationError: There is no line, or lines have other groups than the first.
        """
        if not items:
            raise EvaluationError("there is no question whose likelihood was measured")
        return cls(groups=_columns(items, "groups", _SUMS), calibration=_columns(items, "calibration", _BINS))

    @property
    def n(self) -> int:
        """Questions."""
        return len(next(iter(self.groups.values()))["tokens"])

    def distinct(self, places: Sequence[Sequence[int]]) -> TokenSums:
        """Put copies together: the mean over the places of each distinct question.

        Args:
            places: As in `DistinctQuestions`.

        Returns:
            The same for distinct questions.
        """

        def mean(table: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
            return {
                group: {
                    name: np.stack([column[list(found)].mean(axis=0) for found in places])
                    for name, column in columns.items()
                }
                for group, columns in table.items()
            }

        return TokenSums(mean(self.groups), mean(self.calibration))

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What these sums give values of: groups without a token have none."""
        return tuple(measure for measure in MEASURES.values() if self._gives(measure))

    def _gives(self, measure: Measure) -> bool:
        table = self.calibration if measure.quantity in _CALIBRATION else self.groups
        columns = table.get(measure.group or "")
        return columns is not None and float(columns["tokens"].sum()) > 0

    def contributions(self, measure: Measure) -> np.ndarray:
        """What each question contributes to a measure.

        Of sums, sum_q / mean(tokens). Of the expected calibration error Σ_b abs(Σ_q g_qb) / Σ tokens, g_qb the confidences
        less the right answers of question q in bin b, Σ_b sign_b · g_qb / mean(tokens), where sign_b is that of the gap
        of bin b over all questions: its mean is the error itself, and its spread that of the error for signs that are
        taken as given. In a bin that is (nearly) calibrated the sign is chance: there the error of a sample is above the
        true one, and an interval for the difference to a model that is not calibrated misses it. See `debiased_gaps` for
        the form that does not, `ece_debiased`.

        Args:
            measure: One of `measures`.

        Returns:
            (n,) float64, in nats per token or as shares.

        Raises:
            EvaluationError: These sums give no value of this measure.
        """
        if not self._gives(measure):
            given = ", ".join(each.name for each in self.measures)
            raise EvaluationError(f"nothing was measured that gives {measure.name}; there is {given}")
        columns = (self.calibration if measure.quantity in _CALIBRATION else self.groups)[measure.group or ""]
        if measure.quantity not in _CALIBRATION:
            return np.asarray(columns[measure.quantity] / columns["tokens"].mean())
        gaps_QB = columns["confidence"] - columns["top1"]
        signed = (
            gaps_QB @ np.sign(gaps_QB.sum(axis=0)) if measure.quantity == "ece" else debiased_gaps(gaps_QB)
        )
        return np.asarray(signed / columns["tokens"].sum(axis=1).mean())


def debiased_gaps(gaps_QB: np.ndarray) -> np.ndarray:
    """Contributions whose mean estimates Σ_b abs(E g_b) with little bias, also where E g_b is 0.

    abs(mean of g_b) takes its sign and its size from the same questions, so noise adds to it: 0.8 standard errors s_b where
    the true gap is 0. Taking the sign from two thirds of the questions and the size from the other third leaves none
    there; averaged over all such splits, with normal means, x_b = mean/s_b and r² = (2/3)/(1/3), that is s_b·h(x_b) with
    h(x) = x(2Φ(rx) − 1) − 2r·φ(rx): nearly abs(x) for large x, 0 on average for a bin without a gap, and never more than 0.4
    s_b too low on average. A question contributes the estimate and h'(x_b) times its own distance from the mean,
    h'(x) = 2Φ(rx) − 1 + 2r(1 + r²)·x·φ(rx).

    Args:
        gaps_QB: (n, bins), confidences less right answers of each question; n ≥ 2.

    Returns:
        (n,), summed over bins.
    """
    n, r = len(gaps_QB), math.sqrt(2.0)
    mean_B = gaps_QB.mean(axis=0)
    error_B = gaps_QB.std(axis=0, ddof=1) / math.sqrt(n)
    varies_B = error_B > 1e-12 * np.maximum(np.abs(mean_B), 1e-300)
    x_B = np.divide(mean_B, error_B, out=np.zeros_like(mean_B), where=varies_B)
    turned_B = 2 * stats.norm.cdf(r * x_B) - 1
    density_B = stats.norm.pdf(r * x_B)
    sizes_B = np.where(varies_B, error_B * (x_B * turned_B - 2 * r * density_B), np.abs(mean_B))
    slopes_B = np.where(varies_B, turned_B + 2 * r * (1 + r * r) * x_B * density_B, 0.0)
    return np.asarray((gaps_QB - mean_B) @ slopes_B + sizes_B.sum())


def check_same_tokens(runs: Mapping[str, TokenSums]) -> None:
    """Refuse runs whose questions have other tokens: their nats per token are not of the same things.

    Args:
        runs: By what people call them.

    Raises:
        EvaluationError: They differ; the message names the runs, the group and the question.
    """
    (first, reference), *others = runs.items()
    problems = []
    for name, sums in others:
        if sums.groups.keys() != reference.groups.keys():
            told = f"{', '.join(reference.groups)} and {', '.join(sums.groups)}"
            problems.append(f"{first} and {name} measured different groups of tokens ({told})")
            continue
        for group, columns in sums.groups.items():
            ours, theirs = reference.groups[group]["tokens"], columns["tokens"]
            if len(ours) != len(theirs):
                problems.append(f"{first} has {len(ours):,} questions and {name} {len(theirs):,}")
                break
            unlike = np.flatnonzero(ours != theirs)
            if unlike.size:
                place = int(unlike[0])
                problems.append(
                    f"{first} and {name} have other tokens ({group}: {ours[place]:g} and {theirs[place]:g} in question no. "
                    f"{place + 1}, {unlike.size:,} of {len(ours):,} questions)"
                )
                break
    if problems:
        raise EvaluationError(
            f"{'; '.join(problems)}. Nats per token are compared over the same tokens: measure all of them with the same "
            "tokenizer on the same data"
        )


def _columns(
    items: Sequence[Mapping[str, Any]], part: str, fields: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    groups = list(items[0].get(part) or {})
    problems = []
    for number, item in enumerate(items, start=1):
        if list(item.get(part) or {}) != groups:
            problems.append(
                f"question no. {number} has {part} {', '.join(item.get(part) or {}) or 'of nothing'}"
            )
    if problems or (not groups and part == "groups"):
        told = "; ".join(problems[:_MOST_TOLD]) or "no question has any"
        raise EvaluationError(
            f"likelihoods must have the same {part} for every question ({', '.join(groups) or 'none'} for the first): {told}"
        )
    return {
        group: {
            field: np.array([item[part][group][field] for item in items], dtype=np.float64)
            for field in fields
        }
        for group in groups
    }
