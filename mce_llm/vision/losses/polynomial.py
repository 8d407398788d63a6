"""Polynomials of matrices with few products: traces of powers, values, and the derivative in a symmetric direction.

This is plain arithmetic outside the autograd graph; which polynomial is meant is the caller's business.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mce_llm.vision.losses.products import symmetric_product, trace_of_product, weighted_sum


def log_series(order: int, mu: float) -> list[float]:
    """Coefficients c_0 … c_k of the Taylor series of log around I, read as a polynomial in C for Q = C + μI.

    log_k(Q) = Σ_{i=1..k} (−1)^{i+1} (C + (μ−1) I)^i / i = Σ_{j=0..k} c_j C^j, by the binomial theorem
    c_j = Σ_{i ≥ max(j,1)} (−1)^{i+1}/i · binom(i, j) (μ−1)^{i−j}. With μ = 1 they are 0, 1, −1/2, 1/3, …

    Args:
        order: k >= 1.
        mu: μ.

    Returns:
        k + 1 numbers.
    """
    return [
        math.fsum(
            (-1) ** (i + 1) / i * math.comb(i, j) * (mu - 1) ** (i - j) for i in range(max(j, 1), order + 1)
        )
        for j in range(order + 1)
    ]


class MatrixPowers:
    """A, A², … A^h, from which polynomials up to degree 2h cost one product more, and traces none.

    Args:
        matrix: A, (n, n).
        degree: The highest degree that will be asked for; h = ⌈degree/2⌉.
        symmetric: Whether A is symmetric, which makes products cheaper.
    """

    def __init__(self, matrix: Tensor, degree: int, *, symmetric: bool) -> None:
        self._multiply = symmetric_product if symmetric else torch.matmul
        self.powers = [matrix]
        for _ in range(1, max(1, (degree + 1) // 2)):
            self.powers.append(self._multiply(self.powers[-1], matrix))

    def traces(self, degree: int) -> list[Tensor]:
        """The traces of A, A², … A^degree."""
        half = len(self.powers)
        highest = self.powers[-1]
        return [
            self.powers[j - 1].diagonal().sum()
            if j <= half
            else trace_of_product(highest, self.powers[j - half - 1])
            for j in range(1, degree + 1)
        ]

    def polynomial(self, coefficients: list[float]) -> Tensor:
        """c_0 I + c_1 A + … + c_n Aⁿ for n <= 2h: the upper half is multiplied by A^h as a whole."""
        half = len(self.powers)
        if len(coefficients) <= half + 1:
            return weighted_sum(coefficients, self.powers)
        low, high = coefficients[:half], coefficients[half:]
        return self._multiply(weighted_sum(high, self.powers), self.powers[-1]).add_(
            weighted_sum(low, self.powers)
        )

    def norm_bound(self) -> Tensor:
        """‖A^h‖_F^{1/h}, never below the spectral radius of A."""
        return torch.linalg.matrix_norm(self.powers[-1]) ** (1 / len(self.powers))


def derivative(coefficients: list[float], matrix: Tensor, direction: Tensor) -> Tensor:
    """Σ_k c_k D_k with D_k = Σ_{i<k} Sⁱ W S^{k−1−i}, the derivative of c_1 S + … + c_n Sⁿ in the direction W.

    Both are symmetric, so D_k = X_k + X_kᵀ for half of the terms, which all end in S^⌊k/2⌋:
    X_{2t} = D_t Sᵗ and X_{2t+1} = (D_{t+1} − Sᵗ W/2) Sᵗ. Collected by t and nested, c_1 … c_4 take three products.

    Args:
        coefficients: c_0 … c_n; c_0 has no derivative.
        matrix: S, (m, m), symmetric.
        direction: W, (m, m), symmetric.

    Returns:
        (m, m), symmetric.
    """
    degree = len(coefficients) - 1
    if degree < 1:
        return torch.zeros_like(direction)
    nested: list[Tensor] = []
    D_t, right = direction, direction  # D_t, and W S^{t−1}
    for t in range(1, degree // 2 + 1):
        level = D_t * coefficients[2 * t]
        if 2 * t + 1 <= degree:
            left = D_t @ matrix if t > 1 else None
            right = right @ matrix
            # D_{t+1} = D_t S + Sᵗ W; for t = 1 both are the one product W S.
            D_t = (right if left is None else left) + right.T
            level.add_(D_t, alpha=coefficients[2 * t + 1])
            level.sub_(right.T, alpha=coefficients[2 * t + 1] / 2)
        nested.append(level)
    total = direction * (coefficients[1] / 2)
    if nested:
        inner = nested.pop()
        while nested:
            inner = nested.pop().add_(inner @ matrix)
        total.add_(inner @ matrix)
    return total + total.T
