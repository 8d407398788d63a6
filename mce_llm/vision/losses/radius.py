"""Bounds on the spectral radius of a matrix from the norms of its powers: products alone, no eigenvalues."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SQUARINGS = 6


def power_bound(matrix: Tensor) -> float:
    """The first of ‖Aⁿ‖_F^{1/n}, n = 1, 2, 4, …, 64, that is below 1, or else the last; none is below the spectral radius.

    They come down to the radius, for matrices that are far from normal too, whose norm says little about it. Each one
    makes the host wait for the device.

    Args:
        matrix: A, (n, n), float32 or float64.

    Returns:
        The bound; 0 for a power that is zero, NaN where entries are not finite.
    """
    power, norm = matrix, float(torch.linalg.matrix_norm(matrix))
    logarithm, exponent = 0.0, 1
    for step in range(_SQUARINGS + 1):
        if norm == 0 or math.isnan(norm) or math.isinf(norm):
            return norm if norm == 0 else math.nan
        logarithm += math.log(norm)
        bound = math.exp(logarithm / exponent)
        if bound < 1 or step == _SQUARINGS:
            break
        power = power / norm
        power = power @ power
        norm = float(torch.linalg.matrix_norm(power))
        logarithm, exponent = 2 * logarithm, 2 * exponent
    return bound
