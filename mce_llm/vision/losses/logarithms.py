"""The two logarithms that the losses are made with: the truncated Taylor series around I, and the true one.

Both offer the same three quantities, each with its gradient, outside the autograd graph. Whether the series converges
for the rows at hand is not their business, but `convergence`'s.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mce_llm.matrix import log_loewner, matrix_cross_entropy
from mce_llm.vision.losses.floored_log_det import floored_log_det
from mce_llm.vision.losses.polynomial import MatrixPowers, derivative, log_series
from mce_llm.vision.losses.products import symmetric_product

FLOOR = 0.1
"""The least real part, as a share of μ, of eigenvalues whose logarithm is the exact one."""


class TraceOfLog(NamedTuple):
    """tr log(A + μI) and what goes with it.

    Attributes:
        value: A scalar.
        gradient: (n, n), to A.
        radius: A bound on the spectral radius of A; NaN where none is formed.
        floored: How many eigenvalues of A + μI the exact logarithm continues by its tangent.
    """

    value: Tensor
    gradient: Tensor
    radius: Tensor
    floored: Tensor


class Logarithm(Protocol):
    """What a loss needs of log(· + μI).

    With l(s) = log(s + μ) (or its series), `at_zero` is l(0), and q(s) = (l(s) − l(0))/s is what is left of it in the
    m×m Gram form: log(ZᵀZ/m + μI) = l(0) I + Zᵀ q(ZZᵀ/m) Z/m.
    """

    mu: float
    at_zero: float

    def trace(self, matrix: Tensor, size: int) -> TraceOfLog:
        """The trace of log(A' + μI), where A' is A and size − n zero eigenvalues; A is (n, n), not symmetric."""

    def gram(self, S: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q(S), the gradient of tr(W q(S)) to S, and a bound on the largest eigenvalue of S (NaN where none is)."""

    def cross_entropy(self, M: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tr(M log(B + μI)), its gradient to B, and a bound on the largest eigenvalue of B (NaN where none is)."""


class TaylorLog:
    """log_k(Q) = Σ_{i=1..k} (−1)^{i+1} (Q − I)^i / i with Q = C + μI, a polynomial in C.

    Args:
        order: k.
        mu: μ.
    """

    def __init__(self, order: int, mu: float) -> None:
        self.order, self.mu = order, mu
        self._coefficients = log_series(order, mu)
        self.at_zero = self._coefficients[0]

    def trace(self, matrix: Tensor, size: int) -> TraceOfLog:
        """As in `Logarithm`: two products at order 4, one for A² and one for the gradient Σ j c_j A^{j−1}."""
        c = self._coefficients
        powers = MatrixPowers(matrix, self.order, symmetric=False)
        traces = torch.stack(powers.traces(self.order))
        value = traces @ traces.new_tensor(c[1:]) + size * self.at_zero
        slope = [j * c[j] for j in range(1, self.order + 1)]
        return TraceOfLog(value, powers.polynomial(slope).T, powers.norm_bound(), torch.zeros_like(value))

    def gram(self, S: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `Logarithm`; q(s) = c_1 + c_2 s + … + c_k s^{k−1}. At order 4: S², q(S), and two products with W."""
        q = self._coefficients[1:]
        powers = MatrixPowers(S, self.order - 1, symmetric=True)
        return powers.polynomial(q), derivative(q, S, W), powers.norm_bound()

    def cross_entropy(self, M: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `Logarithm`; at order 4: B², the polynomial, and three products with M."""
        powers = MatrixPowers(B, self.order, symmetric=True)
        value = (M * powers.polynomial(self._coefficients)).sum()
        return value, derivative(self._coefficients, B, M), powers.norm_bound()


class ExactLog:
    """log(C + μI) itself; for a C that is not symmetric its trace, as log det with a floor of μ/10 for eigenvalues.

    A direction in which C does nothing has the eigenvalue μ, so only where student and teacher point opposite ways by
    nine tenths of that is anything else than the logarithm taken.

    Args:
        mu: μ > 0.
    """

    def __init__(self, mu: float) -> None:
        self.mu = mu
        self.at_zero = math.log(mu)

    def trace(self, matrix: Tensor, size: int) -> TraceOfLog:
        """As in `Logarithm`: log det(A + μI) + (size − n) log μ, continued as `floored_log_det` says."""
        shifted = matrix.clone()
        shifted.diagonal().add_(self.mu)
        log_det, gradient, floored = floored_log_det(shifted, FLOOR * self.mu)
        value = log_det + (size - matrix.shape[0]) * self.at_zero
        return TraceOfLog(value, gradient, torch.full_like(value, torch.nan), floored)

    def gram(self, S: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `Logarithm`; q(s) = log1p(s/μ)/s, through the eigendecomposition of S."""
        eigenvalues, vectors = torch.linalg.eigh(S)
        eigenvalues = eigenvalues.clamp(min=0)
        q = log_loewner(eigenvalues + self.mu, torch.full_like(eigenvalues, self.mu))
        differences = second_log_difference(eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2), self.mu)
        inner = differences * symmetric_product(vectors.T, W @ vectors)
        gradient = symmetric_product(vectors, inner @ vectors.T)
        value_of_q = symmetric_product(vectors * q, vectors.T)
        return value_of_q, gradient, torch.full_like(eigenvalues[0], torch.nan)

    def cross_entropy(self, M: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `Logarithm`, from the matrix cross-entropy tr(−M log Q + Q) of `mce_llm.matrix`."""
        Q = B.clone()
        Q.diagonal().add_(self.mu)
        with torch.enable_grad():
            leaf = Q.requires_grad_()
            entropy = matrix_cross_entropy(M, leaf, validate=False)
            (gradient,) = torch.autograd.grad(entropy, leaf)
        Q = Q.detach()
        gradient = -gradient
        gradient.diagonal().add_(1)
        return Q.diagonal().sum() - entropy.detach(), gradient, torch.full_like(Q[0, 0], torch.nan)


def second_log_difference(x: Tensor, y: Tensor, mu: float) -> Tensor:
    """The second divided difference log[μ, x+μ, y+μ]: the first one of q(s) = log1p(s/μ)/s, at x and y.

    Equal to (log[x+μ, y+μ] − q(lo))/hi with hi = max(x, y) and lo = min(x, y). Where hi is small against μ that
    cancels, and the series Σ_n (−1)^{n+1} h_n(u, v)/(n + 2)/μ² in u = x/μ and v = y/μ takes over, with h_n the
    complete homogeneous polynomial uⁿ + uⁿ⁻¹v + … + vⁿ.

    Args:
        x: Numbers >= 0, any shape.
        y: Numbers >= 0 that broadcast with x.
        mu: μ > 0.

    Returns:
        Negative numbers in the broadcast shape; −1/(2μ²) at x = y = 0.
    """
    high, low = torch.maximum(x, y), torch.minimum(x, y)
    near = high < 0.02 * mu
    divisor = torch.where(near, mu, high)
    shift = torch.full_like(low, mu)
    quotient = (log_loewner(x + mu, y + mu) - log_loewner(low + mu, shift)) / divisor
    u, v = torch.where(near, high, 0) / mu, torch.where(near, low, 0) / mu
    series, homogeneous, power = torch.zeros_like(u), torch.ones_like(u), torch.ones_like(u)
    for n in range(9):  # the first term left out is below 10·0.02^9/11 of the first one: 5e-16
        series += (-1) ** (n + 1) / (n + 2) * homogeneous
        power = power * v
        homogeneous = homogeneous * u + power
    return torch.where(near, series / mu**2, quotient)
