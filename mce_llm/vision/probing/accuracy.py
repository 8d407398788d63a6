"""How often the right class is first, or among the first five, with how much certainty, and for which classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

CONFIDENCE = 0.95
_TOP = 5


def rank_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes stand before the right one: those with a higher score, and of equal ones those before it.

    Args:
        scores: (n, C), finite; higher is more likely.
        labels: (n,) int64 in [0, C).

    Returns:
        (n,) int64; 0 where the right class is first. Ties are decided by the order of the classes, as `argmax` does, so
        the result depends on no library's sorting.
    """
    own = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(dim=1)


def accuracy_report(ranks: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """What summary.json says of a classification; accuracies are shares in [0, 1].

    Args:
        ranks: (n,) from `rank_of_label`; a negative rank counts as wrong in every respect.
        labels: (n,) int64.
        classes: The names of the C classes.

    Returns:
        `top1`; `top1_interval`, Wilson's for 95 % confidence on images like these (the training's own randomness is not
        in it); `top5` where there are more than five classes; `images`; `classes`, how many there are to choose from;
        `per_class`, by name the top-1 accuracy and the number of images, for classes that have any.
    """
    ranks, labels = ranks.cpu(), labels.cpu()
    n = len(labels)
    first = ranks == 0
    interval = binomtest(int(first.sum()), n).proportion_ci(CONFIDENCE, method="wilson")
    report: dict[str, Any] = {
        "top1": first.sum().item() / n,
        "top1_interval": [float(interval.low), float(interval.high)],
    }
    if len(classes) > _TOP:
        report["top5"] = ((ranks >= 0) & (ranks < _TOP)).sum().item() / n
    counts = torch.bincount(labels, minlength=len(classes))
    right = torch.bincount(labels[first], minlength=len(classes))
    report["images"], report["classes"] = n, len(classes)
    report["per_class"] = {
        name: {"top1": int(hits) / int(count), "images": int(count)}
        for name, hits, count in zip(classes, right, counts, strict=True)
        if count
    }
    return report


def sentence(report: dict[str, Any]) -> str:
    """The report in a line for the terminal."""
    low, high = report["top1_interval"]
    top5 = f", top-5 {report['top5']:.2%}" if "top5" in report else ""
    return f"top-1 {report['top1']:.2%} (95 %: {low:.2%} to {high:.2%}){top5} on {report['images']:,} images"
