"""Products of large matrices that are cheaper than the general one. Callers have full precision switched on."""

from __future__ import annotations

import torch
from torch import Tensor

# A product of fewer rows is not fast enough to gain from leaving some out.
_NARROWEST_STRIP = 256
_STRIPS = 4


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """A @ B, where the caller knows that it is symmetric: the lower strips are multiplied, the others mirrored.

    With four strips that is 10/16 of the work. Done on CPUs, where a product takes as long as its arithmetic; a GPU
    is not filled by a strip.

    Args:
        left: (n, k).
        right: (k, n).

    Returns:
        (n, n), symmetric to the last bit where it is done in strips.
    """
    size = left.shape[0]
    if left.device.type != "cpu" or size < 2 * _NARROWEST_STRIP:
        return left @ right
    result = left.new_empty(size, size)
    step = max(_NARROWEST_STRIP, -(-size // _STRIPS))
    for first in range(0, size, step):
        last = min(first + step, size)
        # Not `out=`, which refuses a strip of a wider matrix or copies it anyway.
        strip = left[first:last] @ right[:, :last]
        result[first:last, :last] = strip
        result[:first, first:last] = strip[:, :first].T
    for first in range(0, size, step):
        block = result[first : first + step, first : first + step]
        block.copy_((block + block.T) / 2)
    return result


def trace_of_product(left: Tensor, right: Tensor) -> Tensor:
    """tr(A B) without the product.

    Args:
        left: (n, k).
        right: (k, n).

    Returns:
        A scalar.
    """
    return (left * right.T).sum()


def weighted_sum(coefficients: list[float], powers: list[Tensor]) -> Tensor:
    """Σ_j c_j M_j over the coefficients, where M_0 = I is left out of the list: `powers` starts at M_1.

    Args:
        coefficients: c_0 … c_n, n at most the number of powers.
        powers: M_1, M_2, …, all (k, k).

    Returns:
        (k, k), a new tensor.
    """
    total = powers[0] * coefficients[1] if len(coefficients) > 1 else torch.zeros_like(powers[0])
    for coefficient, power in zip(coefficients[2:], powers[1:], strict=False):
        total.add_(power, alpha=coefficient)
    if coefficients[0]:
        total.diagonal().add_(coefficients[0])
    return total
