"""The lines of `items.jsonl` of a likelihood evaluation, sums over the tokens of one question, and what is made of their pool.

Neither torch nor datasets is needed here. Legend: T tokens of one reference solution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mce_llm.eval.items import Item

GROUPS = {
    "all": "every token that training would put a label on, the one that ends the solution included",
    "numbers": "those that hold a digit of a number, or stand wholly inside one",
    "results": "those of numbers directly behind `=`",
    "answer": "those of the final answer",
    "words": "all others than numbers",
}
"""Name of a group of tokens → which they are."""
CALIBRATED = ("numbers", "all")
"""The groups whose calibration is measured."""
BINS = 15
"""Of equal width, over the confidence."""
SUMS = ("tokens", "nats", "top1", "entropy")
"""What is summed in each group."""


@dataclass(frozen=True)
class TokenScores:
    """What a model makes of the tokens of a solution; of T tokens each.

    Attributes:
        nats_T: −log q_y, the surprise at the token that stands there, in nats.
        entropy_T: −Σ_v q_v log q_v, in nats.
        confidence_T: max_v q_v.
        top1_T: Whether the token is the most probable one.
    """

    nats_T: NDArray[np.float64]
    entropy_T: NDArray[np.float64]
    confidence_T: NDArray[np.float64]
    top1_T: NDArray[np.bool_]


def item_of(
    index: int, question: str, gold: str, groups: Mapping[str, NDArray[np.bool_]], scores: TokenScores
) -> Item:
    """Sum up a question.

    Args:
        index: Its place among the questions.
        question: Its text.
        gold: Its final answer.
        groups: For each of `GROUPS` which tokens are in it, (T,).
        scores: Of its tokens.

    Returns:
        The line: for each group the number of tokens and the sums of nats, hits and entropy; for each of `CALIBRATED`
        tokens, sum of confidence and hits by bin of confidence.
    """
    bins_T = np.clip(np.ceil(scores.confidence_T * BINS).astype(int) - 1, 0, BINS - 1)
    return {
        "index": index,
        "question": question,
        "gold": gold,
        "groups": {
            name: {
                "tokens": int(groups[name].sum()),
                "nats": float(scores.nats_T[groups[name]].sum()),
                "top1": int(scores.top1_T[groups[name]].sum()),
                "entropy": float(scores.entropy_T[groups[name]].sum()),
            }
            for name in GROUPS
        },
        "calibration": {
            name: {
                "tokens": np.bincount(bins_T[groups[name]], minlength=BINS).tolist(),
                "confidence": np.bincount(
                    bins_T[groups[name]], scores.confidence_T[groups[name]], minlength=BINS
                ).tolist(),
                "top1": np.bincount(bins_T[groups[name] & scores.top1_T], minlength=BINS).tolist(),
            }
            for name in CALIBRATED
        },
    }


def pooled_groups(items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Pool the groups of many questions: ratios of sums, so that every token counts the same.

    Args:
        items: Lines.

    Returns:
        For each of `GROUPS`: `tokens`, `nats` (their sum), and for a group with tokens `nats_per_token`, `perplexity`
        (its exponential), `top1` (a share) and `entropy` (its mean, in nats); None for these where it is empty, and for a
        perplexity beyond floating point.
    """
    return {name: _pooled([item["groups"][name] for item in items]) for name in GROUPS}


def _pooled(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tokens = sum(part["tokens"] for part in parts)
    nats = math.fsum(part["nats"] for part in parts)
    if not tokens:
        return {
            "tokens": 0,
            "nats": 0.0,
            **dict.fromkeys(("nats_per_token", "perplexity", "top1", "entropy")),
        }
    mean = nats / tokens
    return {
        "tokens": tokens,
        "nats": nats,
        "nats_per_token": mean,
        "perplexity": math.exp(mean) if mean < 700 else None,
        "top1": sum(part["top1"] for part in parts) / tokens,
        "entropy": math.fsum(part["entropy"] for part in parts) / tokens,
    }


def calibration_errors(items: Sequence[Item]) -> dict[str, float | None]:
    """The expected calibration error of the most probable token, pooled over questions.

    ECE = Σ_b (n_b/n)·abs(hits_b/n_b − confidence_b/n_b) over `BINS` bins of equal width; bin b holds the tokens with confidence in
    (b/15, (b+1)/15]. Guo et al., On Calibration of Modern Neural Networks, ICML 2017.

    Args:
        items: Lines.

    Returns:
        For each of `CALIBRATED` the error, in [0, 1]; None where the group is empty.
    """
    return {name: _calibration_error([item["calibration"][name] for item in items]) for name in CALIBRATED}


def _calibration_error(parts: Sequence[Mapping[str, Sequence[float]]]) -> float | None:
    tokens, confidence, hits = (
        np.sum([part[name] for part in parts], axis=0) for name in ("tokens", "confidence", "top1")
    )
    return float(np.abs(hits - confidence).sum() / tokens.sum()) if tokens.sum() else None
