"""Matrix entropy, matrix KL divergence and matrix cross-entropy, in nats, with exact gradients.

Definitions after Zhang, Tan, Yang, Huang and Yuan, *Matrix Information Theory for Self-Supervised Learning*,
ICML 2024, arXiv 2305.17326: the arguments are positive semi-definite, of any trace. Each value is formed from
eigendecompositions, and its gradient in closed form beside it, so nothing is differentiated through `eigh`.
"""

import torch
from torch import Tensor

from mce_llm.matrix.checks import (
    matching_matrices,
    require_finite_symmetric,
    require_positive_definite,
    require_positive_semidefinite,
    square_matrices,
)
from mce_llm.matrix.first_order import needs_gradient, with_gradient
from mce_llm.matrix.logarithm import decompose, from_spectrum, matrix_log_frechet, symmetrize
from mce_llm.matrix.precision import autocast_off, full_precision_product
from mce_llm.matrix.rational_log import (
    RationalLogError,
    by_products,
    resolvents,
    surely_positive_semidefinite,
    warn_of_fall_back,
)


def log_clamped(eigenvalues: Tensor) -> Tensor:
    """Bounded logarithm log max(λ, eps·λ_max): the derivative of λ log λ − λ, finite at λ = 0.

    Args:
        eigenvalues: (..., d).

    Returns:
        (..., d), finite, also for the zero matrix.
    """
    info = torch.finfo(eigenvalues.dtype)
    floor = (info.eps * eigenvalues.amax(dim=-1, keepdim=True)).clamp(min=info.tiny)
    return torch.maximum(eigenvalues, floor).log()


def matrix_entropy(A: Tensor, *, validate: bool = True) -> Tensor:
    """ME(A) = −tr(A log A) + tr(A), the matrix entropy in nats, with 0·log 0 = 0.

    For trace one it is the von Neumann entropy plus 1. The gradient is −log A; at a singular A, where that is
    unbounded, eigenvalues below eps·λ_max count as eps·λ_max in the gradient (not in the value), so it is finite.
    Differentiable once (Zhang et al., arXiv 2305.17326).

    Refused as in `matrix_log`, except that a singular A is welcome.

    Args:
        A: (..., d, d), float32 or float64, symmetric positive semi-definite.
        validate: Check the values of A, which makes the host wait for the device.

    Returns:
        (...), of A's dtype.
    """
    A = square_matrices(A, "A")
    if validate:
        require_finite_symmetric(A, "A")
    eigenvalues, eigenvectors = decompose(A)
    if validate:
        require_positive_semidefinite(eigenvalues, "A")
    eigenvalues = eigenvalues.clamp(min=0)
    value = (eigenvalues - torch.xlogy(eigenvalues, eigenvalues)).sum(-1)
    gradient = from_spectrum(-log_clamped(eigenvalues), eigenvectors) if needs_gradient(A) else None
    return with_gradient(value, A, gradient)


def scalar_kl(p: Tensor, q: Tensor) -> Tensor:
    """k(p, q) = p log(p/q) − p + q, without cancellation where p and q nearly agree; k >= 0, k(0, q) = q.

    With z = (p − q)/(p + q), k = (p + q)(z² + (1 + z)(atanh z − z)); for |z| < 0.1 the last bracket is its
    series z³/3 + z⁵/5 + …, so that k keeps full relative accuracy down to p = q.

    Args:
        p: Numbers >= 0, any shape.
        q: Numbers > 0 that broadcast with p.

    Returns:
        k in the broadcast shape, never negative.
    """
    total = p + q
    z = (p - q) / total
    square = z * z
    series = torch.zeros_like(z)
    for power in range(17, 1, -2):  # the first term left out is below 0.1^19/19 = 5e-21
        series = series * square + 1.0 / power
    near = total * square * (1 + (1 + z) * z * series)
    info = torch.finfo(z.dtype)
    far = torch.xlogy(p, (p / q).clamp(info.tiny, info.max)) - p + q
    return torch.where(z.abs() < 0.1, near, far)


def matrix_kl_divergence(P: Tensor, Q: Tensor, *, validate: bool = True) -> Tensor:
    """MKL(P‖Q) = tr(P log P − P log Q − P + Q), the matrix KL divergence in nats.

    Evaluated as Σ_ij ⟨u_i, v_j⟩² k(p_i, q_j) over the eigenpairs (p_i, u_i) of P and (q_j, v_j) of Q, with
    k = `scalar_kl`: a sum of non-negative terms, so it is never negative, and near P = Q it keeps the digits that
    the difference of traces loses. P may be singular. Gradients: log P − log Q to P (with the eigenvalues of P
    below eps·p_max counted as eps·p_max), I − D log[Q](P) to Q, exact at clusters too. Differentiable once
    (Zhang et al., arXiv 2305.17326).

    Refused as in `matrix_log`, for Q; a singular P is welcome. P and Q must share d, dtype and device.

    Args:
        P: (..., d, d), float32 or float64, symmetric positive semi-definite.
        Q: (..., d, d), symmetric positive definite; batch dimensions broadcast with those of P.
        validate: Check the values of P and Q, which makes the host wait for the device.

    Returns:
        (...), in the broadcast batch shape.
    """
    P, Q = square_matrices(P, "P"), square_matrices(Q, "Q")
    matching_matrices(P, Q)
    if validate:
        require_finite_symmetric(P, "P")
        require_finite_symmetric(Q, "Q")
    p_values, p_vectors = decompose(P)
    q_values, q_vectors = decompose(Q)
    if validate:
        require_positive_semidefinite(p_values, "P")
        require_positive_definite(q_values, "Q")
    p_values = p_values.clamp(min=0)
    p_needed, q_needed = needs_gradient(P), needs_gradient(Q)
    with torch.no_grad(), autocast_off(P.device.type):
        overlap = full_precision_product(p_vectors.mT, q_vectors).square()
        value = (overlap * scalar_kl(p_values.unsqueeze(-1), q_values.unsqueeze(-2))).sum(dim=(-2, -1))
        p_gradient = q_gradient = None
        if p_needed:
            p_gradient = from_spectrum(log_clamped(p_values), p_vectors) - from_spectrum(
                q_values.log(), q_vectors
            )
        if q_needed:
            q_gradient = _identity_like(Q) - matrix_log_frechet(q_values, q_vectors, symmetrize(P))
    return with_gradient(value, P, p_gradient, Q, q_gradient)


def matrix_cross_entropy(P: Tensor, Q: Tensor, *, validate: bool = True, method: str = "auto") -> Tensor:
    """MCE(P, Q) = tr(−P log Q + Q) = ME(P) + MKL(P‖Q), the matrix cross-entropy in nats.

    Convex in Q with its minimum at Q = P. Gradients: −log Q to P and I − D log[Q](P) to Q, exact at clusters too.
    Differentiable once (Zhang et al., arXiv 2305.17326). Only Q is decomposed (and P too, for its check, with
    `validate`), or, with `method="rational"`, inverted at a dozen shifts, with the errors given at `matrix_log`.

    Refused as in `matrix_log`, for Q; a singular P is welcome. P and Q must share d, dtype and device.

    Args:
        P: (..., d, d), float32 or float64, symmetric positive semi-definite.
        Q: (..., d, d), symmetric positive definite; batch dimensions broadcast with those of P.
        validate: Check the values of P and Q, which makes the host wait for the device.
        method: "eigh", "rational", or "auto", as in `matrix_log`.

    Returns:
        (...), in the broadcast batch shape.
    """
    P, Q = square_matrices(P, "P"), square_matrices(Q, "Q")
    matching_matrices(P, Q)
    rational = by_products(Q, method)
    if validate:
        require_finite_symmetric(P, "P")
        require_finite_symmetric(Q, "Q")
        if not (rational and surely_positive_semidefinite(symmetrize(P))):
            require_positive_semidefinite(decompose(P)[0], "P")
    failure = None
    if rational:
        try:
            return _rational_cross_entropy(P, Q)
        except RationalLogError as error:
            failure = error
    q_values, q_vectors = decompose(Q)
    if validate:
        require_positive_definite(q_values, "Q")
    if failure is not None:
        warn_of_fall_back("matrix_cross_entropy", failure)
    p_needed, q_needed = needs_gradient(P), needs_gradient(Q)
    with torch.no_grad(), autocast_off(P.device.type):
        diagonal = (q_vectors * full_precision_product(symmetrize(P), q_vectors)).sum(-2)  # v_jᵀ P v_j
        value = (q_values - diagonal * q_values.log()).sum(-1)
        p_gradient = q_gradient = None
        if p_needed:
            p_gradient = -from_spectrum(q_values.log(), q_vectors)
        if q_needed:
            q_gradient = _identity_like(Q) - matrix_log_frechet(q_values, q_vectors, symmetrize(P))
    return with_gradient(value, P, p_gradient, Q, q_gradient)


def _rational_cross_entropy(P: Tensor, Q: Tensor) -> Tensor:
    """`matrix_cross_entropy` from one sweep over the resolvents of Q."""
    p_needed, q_needed = needs_gradient(P), needs_gradient(Q)
    with torch.no_grad(), autocast_off(P.device.type):
        p_symmetric = symmetrize(P)
        log_q, derivative = resolvents(symmetrize(Q)).sweep(p_symmetric if q_needed else None)
        trace = Q.diagonal(dim1=-2, dim2=-1).sum(-1)
        value = trace - (p_symmetric * log_q).sum(dim=(-2, -1))
        p_gradient = -symmetrize(log_q) if p_needed else None
        q_gradient = None if derivative is None else _identity_like(Q) - symmetrize(derivative)
    return with_gradient(value, P, p_gradient, Q, q_gradient)


def _identity_like(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
