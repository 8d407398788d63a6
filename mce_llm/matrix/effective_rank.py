"""Effective rank: how many dimensions a spectrum really uses.

The exponential of the entropy of the normalised eigenvalues (Roy and Vetterli, EUSIPCO 2007), as used in Zhang
et al., ICML 2024, arXiv 2305.17326, to watch features collapse.
"""

import torch
from torch import Tensor

from mce_llm.matrix.checks import (
    first_bad,
    require_finite_symmetric,
    require_positive_semidefinite,
    square_matrices,
)
from mce_llm.matrix.covariance import covariance, feature_rows, gram
from mce_llm.matrix.errors import ZeroMatrixError
from mce_llm.matrix.first_order import needs_gradient, with_gradient
from mce_llm.matrix.information import log_clamped
from mce_llm.matrix.logarithm import decompose, from_spectrum, spectrum_of


def effective_rank(A: Tensor, *, validate: bool = True) -> Tensor:
    """erank(A) = exp(−Σ_i p_i log p_i) with p_i = λ_i/Σλ: between 1 and d, and free of A's scale.

    The gradient is exact at clusters of eigenvalues too. At a singular A, where it is unbounded, eigenvalues
    below eps·λ_max count as eps·λ_max in the gradient (not in the value), so it is finite. Differentiable once.

    Refused as in `matrix_entropy`; without `validate` the zero matrix gives NaN.

    Args:
        A: (..., d, d), float32 or float64, symmetric positive semi-definite, not zero.
        validate: Check the values of A, which makes the host wait for the device.

    Returns:
        (...), a number of dimensions, of A's dtype.

    Raises:
        ZeroMatrixError: A matrix of the stack is zero, so its spectrum cannot be normalised.
    """
    A = square_matrices(A, "A")
    if validate:
        require_finite_symmetric(A, "A")
    eigenvectors = None
    if needs_gradient(A):
        eigenvalues, eigenvectors = decompose(A)
    else:
        eigenvalues = spectrum_of(A)
    if validate:
        require_positive_semidefinite(eigenvalues, "A")
    eigenvalues = eigenvalues.clamp(min=0)
    largest = eigenvalues.amax(-1, keepdim=True)
    if validate and bool((largest <= 0).any()):
        count, _, where = first_bad(largest <= 0, ("eigenvalue",))
        raise ZeroMatrixError(
            f"A must not be zero: {count} of {largest.numel()} matrices have no positive eigenvalue (the first: "
            f"{where}), so there is no spectrum to normalise. Features that are all equal do this when centred"
        )
    scaled = eigenvalues / largest  # a sum over λ itself may overflow
    total = scaled.sum(-1, keepdim=True)
    shares = scaled / total
    entropy = -torch.xlogy(shares, shares).sum(-1, keepdim=True)
    value = entropy.exp()
    gradient = None
    if eigenvectors is not None:
        gradient = from_spectrum(-value * (log_clamped(shares) + entropy) / (total * largest), eigenvectors)
    return with_gradient(value.squeeze(-1), A, gradient)


def effective_rank_of_rows(X: Tensor, center: bool = True, *, validate: bool = True) -> Tensor:
    """Effective rank of the covariance of rows: p_i = σ_i²/Σσ² for the singular values σ of the (centred) rows.

    Equal to `effective_rank(covariance(X, center=center))`, but decomposes the smaller of the n×n Gram and the
    d×d covariance matrix. Refuses what `covariance` refuses.

    Args:
        X: (..., n, d) rows; bfloat16 and float16 are cast to float32.
        center: Subtract the mean row.
        validate: Check the values of X, which makes the host wait for the device.

    Returns:
        (...) in float32 or float64, between 1 and min(n, d), differentiable once.

    Raises:
        ZeroMatrixError: All rows are zero (or equal, when centred) to rounding.
    """
    X = feature_rows(X, "X", validate=validate)
    side = gram if X.shape[-2] < X.shape[-1] else covariance
    moment = side(X, center=center, validate=False)
    if validate:
        # Centring equal rows leaves their rounding, eps·‖x‖ a row, which must not pass for structure.
        variance = moment.diagonal(dim1=-2, dim2=-1).sum(-1)
        power = X.square().sum(-1).mean(-1)
        flat = variance <= (8 * torch.finfo(X.dtype).eps) ** 2 * power
        if bool(flat.any()):
            count, index, _ = first_bad(flat, ())
            what = "equal" if center else "zero"
            raise ZeroMatrixError(
                f"X must have rows that are not all {what}: {count} of {flat.numel()} feature matrices have none "
                f"(the first at batch index {index}), so there is no spectrum to normalise"
            )
    return effective_rank(moment, validate=False)
