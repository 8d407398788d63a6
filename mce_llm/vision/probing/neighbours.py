"""Weighted k-nearest-neighbour classification: the class of an image is what its neighbours among the features vote for.

Pure functions on tensors; where features come from is in `mce_llm.vision.probing.features`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mce_llm.errors import MceLlmError
from mce_llm.matrix.precision import full_precision
from mce_llm.running.settings import raise_all
from mce_llm.vision.probing.accuracy import rank_of_label

QUERY_ROWS = 1024  # similarities of so many queries to the whole bank exist at once


class NeighbourError(MceLlmError, ValueError):
    """Neighbours that cannot be found; the message says which number to change."""


def nearest_neighbours(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of the bank with the highest cosine to each query; of equal ones those that come first in the bank.

    Exact, in float32 (or float64 where both are): every cosine is computed, without TF32 or autocast. A row of zeros has
    cosine 0 to everything.

    Args:
        queries: (Q, d).
        bank: (N, d).
        k: At most N.

    Returns:
        Cosines (Q, k), falling, and places in the bank (Q, k), on the device of the bank.

    Raises:
        NeighbourError: k is not in [1, N], or the widths differ.
    """
    return _nearest(_directions(queries.to(bank.device)), _directions(bank), k)


def neighbour_votes(
    cosines: Tensor, neighbour_labels: Tensor, temperature: float, num_classes: int
) -> Tensor:
    """Add up the neighbours' votes: score_c = Σ_i exp(cos_i/τ) [label_i = c].

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4. The
    weights of a query are divided by its nearest neighbour's, which changes no decision and keeps them in range.

    Args:
        cosines: (Q, k), the greatest first.
        neighbour_labels: (Q, k) int64.
        temperature: τ; 0.07 in the paper, 0.1 by default in the scripts.
        num_classes: C.

    Returns:
        (Q, C); exactly 0 for classes without a neighbour.
    """
    weights = torch.exp((cosines - cosines[:, :1]) / temperature)
    scores = cosines.new_zeros(len(cosines), num_classes)
    return scores.scatter_add_(1, neighbour_labels, weights)


def vote_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """`rank_of_label`, with −1 where the right class has no neighbour at all.

    Without that, a class that got no vote would be "among the first five" by the order of the classes alone.

    Args:
        scores: (Q, C) from `neighbour_votes`.
        labels: (Q,) int64.

    Returns:
        (Q,) int64.
    """
    ranks = rank_of_label(scores, labels)
    return ranks.masked_fill(scores.gather(1, labels[:, None])[:, 0] == 0, -1)


def knn_ranks(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> dict[int, Tensor]:
    """For several k at once, the place of the right class of each test image among the votes.

    Queries are taken in blocks of a fixed size, and with several processes each takes every `world_size`-th block: the
    same products of the same shapes, so the result is bit for bit that of one process.

    Args:
        train_features: (N, d); the bank. What computes is its device.
        train_labels: (N,) int64 in [0, C).
        test_features: (Q, d).
        test_labels: (Q,) int64 in [0, C).
        ks: Numbers of neighbours.
        temperature: τ.
        num_classes: C.
        rank: Which of several processes this is.
        world_size: How many share the blocks.

    Returns:
        k → (Q,) int64 on the CPU: `vote_ranks` in this process's blocks, and −2 elsewhere (with one process, nowhere).

    Raises:
        NeighbourError: A k is not in [1, N], the temperature is not positive, or shapes or labels do not fit.
    """
    _check(train_features, train_labels, test_features, test_labels, ks, temperature, num_classes)
    device = train_features.device
    bank, bank_labels = _directions(train_features), train_labels.to(device)
    found = {k: torch.full((len(test_labels),), -2, dtype=torch.int64) for k in ks}
    for number, start in enumerate(range(0, len(test_labels), QUERY_ROWS)):
        if number % world_size != rank:
            continue
        block = slice(start, start + QUERY_ROWS)
        cosines, places = _nearest(_directions(test_features[block].to(device)), bank, max(ks))
        labels = test_labels[block].to(device)
        for k in found:
            votes = neighbour_votes(cosines[:, :k], bank_labels[places[:, :k]], temperature, num_classes)
            found[k][block] = vote_ranks(votes, labels).cpu()
    return found


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int,
    temperature: float,
    num_classes: int,
) -> float:
    """The share of test images whose class the k nearest training images vote for; see `knn_ranks` for the arguments.

    Args:
        train_features: (N, d).
        train_labels: (N,) int64.
        test_features: (Q, d).
        test_labels: (Q,) int64.
        k: Number of neighbours.
        temperature: τ.
        num_classes: C.

    Returns:
        Top-1 accuracy in [0, 1].
    """
    ranks = knn_ranks(
        train_features, train_labels, test_features, test_labels, [k], temperature, num_classes
    )[k]
    return (ranks == 0).sum().item() / len(ranks)


def _directions(rows: Tensor) -> Tensor:
    """Rows of length 1; of length 0 where they are zero."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return F.normalize(rows, dim=1)


def _nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if queries.shape[1:] != bank.shape[1:]:
        raise NeighbourError(
            f"features of {tuple(queries.shape)} and {tuple(bank.shape)} have different widths; they must be from one "
            "encoder"
        )
    if not 1 <= k <= len(bank):
        raise NeighbourError(
            f"k must be in [1, {len(bank)}], as there are {len(bank)} training images, got {k}; 20 is usual for small sets"
        )
    with full_precision(bank):
        cosines = queries @ bank.mT
    values, places = cosines.topk(k, dim=1)
    # topk may take any of the rows that tie for the last place: there, and only there, everything is sorted.
    tied = (cosines >= values[:, -1:]).sum(dim=1) > k
    if tied.any():
        ordered, order = cosines[tied].sort(dim=1, descending=True, stable=True)
        values[tied], places[tied] = ordered[:, :k], order[:, :k]
    # By place, then stably by value: equal cosines in the order of the bank.
    places, order = places.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def _check(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> None:
    problems = []
    n = len(train_features)
    if too_many := [k for k in ks if not 1 <= k <= n]:
        problems.append(
            f"k must be in [1, {n}], as there are {n} training images, got {', '.join(map(str, too_many))}; 20 is usual for "
            "small sets"
        )
    if not ks:
        problems.append("no k was given")
    if not 0 < temperature < float("inf"):
        problems.append(f"the temperature must be positive, got {temperature}; 0.1 is the usual choice")
    for name, features, labels in (
        ("training", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            problems.append(
                f"{name} features must be (n, d) with n labels, got {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        elif not len(labels):
            problems.append(f"there are no {name} images")
        elif int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            problems.append(
                f"{name} labels must be in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}"
            )
    if train_features.shape[1:] != test_features.shape[1:]:
        problems.append(
            f"training and test features have different widths: {tuple(train_features.shape)}, {tuple(test_features.shape)}"
        )
    raise_all(problems, NeighbourError)
