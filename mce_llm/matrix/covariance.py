"""Covariance, Gram and density matrices of feature rows, formed in float32 or float64.

Rows are the samples. bfloat16 and float16 rows are welcome: they are cast to float32 before the product, which
runs without autocast and TF32. Differentiable any number of times in the rows and the weights.
"""

import torch
from torch import Tensor

from mce_llm.matrix.checks import (
    LOW_DTYPES,
    first_bad,
    require_finite,
    row_matrices,
    square_matrices,
)
from mce_llm.matrix.errors import MatrixDtypeError, MatrixInputError, MatrixShapeError, ZeroMatrixError
from mce_llm.matrix.logarithm import symmetrize
from mce_llm.matrix.precision import autocast_off, full_precision_product


def feature_rows(value: object, name: str, *, validate: bool) -> Tensor:
    """The argument as (..., n, d) rows in float32 or float64; refuses what `row_matrices` refuses.

    Args:
        value: What the caller passed.
        name: The argument's name.
        validate: Check that every entry is finite.

    Returns:
        The tensor, cast to float32 if it was bfloat16 or float16.

    """
    if isinstance(value, Tensor) and value.dtype in LOW_DTYPES:
        value = value.float()
    rows = row_matrices(value, name)
    if validate:
        require_finite(rows, name)
    return rows


def _shares(weights: Tensor | None, X: Tensor, *, validate: bool) -> Tensor | None:
    """Weights (..., n) divided by their sum, or None for equal ones."""
    if weights is None:
        return None
    if not isinstance(weights, Tensor):
        raise MatrixDtypeError(f"weights must be a torch.Tensor, got {type(weights).__name__}")
    if weights.ndim < 1 or weights.shape[-1] != X.shape[-2]:
        raise MatrixShapeError(
            f"weights must have one entry for each of the {X.shape[-2]} rows of X, (..., n), "
            f"got shape {tuple(weights.shape)}"
        )
    weights = weights.to(X.dtype)
    total = weights.sum(-1, keepdim=True)
    if validate:
        require_finite(weights, "weights", ("row",))
        if bool((weights < 0).any()):
            count, index, where = first_bad(weights < 0, ("row",))
            raise MatrixInputError(
                f"weights must be >= 0, but {count} of {weights.numel()} are negative; the first is "
                f"{float(weights[index])} at {where}. A weight is a count or a probability"
            )
        if bool((total <= 0).any()):
            _, _, where = first_bad(total <= 0, ("sum",))
            raise ZeroMatrixError(
                f"weights must have a positive sum, but it is 0 ({where}); pass None for equal weights"
            )
    return weights / total


def _unit_rows(X: Tensor) -> Tensor:
    """Rows divided by their Euclidean norms; a zero row stays zero, with a zero gradient."""
    norms = torch.linalg.vector_norm(X, dim=-1, keepdim=True)
    return torch.where(norms > 0, X / torch.where(norms > 0, norms, 1), 0)


def _prepared(X: Tensor, shares: Tensor | None, *, center: bool, normalize: bool) -> Tensor:
    if normalize:
        X = _unit_rows(X)
    if center:
        mean = (
            X.mean(-2, keepdim=True) if shares is None else (shares.unsqueeze(-1) * X).sum(-2, keepdim=True)
        )
        X = X - mean
    return X


def covariance(
    X: Tensor,
    Y: Tensor | None = None,
    *,
    center: bool = True,
    normalize: bool = False,
    weights: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """C = Σ_i w_i (x_i − x̄)(y_i − ȳ)ᵀ / Σ_i w_i, the biased (cross-)covariance of rows.

    The steps are: normalise rows, centre with the weighted mean, take the second moment. Without `center` it is
    the second moment about zero.

    Refused: fewer than two dimensions, no rows or columns, X and Y (or the weights) of different n
    (`MatrixShapeError`), integer and complex dtypes (`MatrixDtypeError`), and, with `validate`, entries that are
    not finite (`NotFiniteError`), negative weights (`MatrixInputError`), weights that sum to zero
    (`ZeroMatrixError`).

    Args:
        X: (..., n, d) rows; bfloat16 and float16 are cast to float32.
        Y: (..., n, e) rows for a cross-covariance; X itself if None.
        center: Subtract the mean row.
        normalize: First divide each row by its Euclidean norm; a zero row stays zero.
        weights: (..., n), not negative, not all zero; equal if None.
        validate: Check values, which makes the host wait for the device.

    Returns:
        (..., d, e) in float32 or float64; symmetric to the last bit if Y is None.

    Raises:
        MatrixShapeError: X and Y differ in their number of rows.
    """
    X = feature_rows(X, "X", validate=validate)
    with autocast_off(X.device.type):
        shares = _shares(weights, X, validate=validate)
        left = _prepared(X, shares, center=center, normalize=normalize)
        right = left
        if Y is not None:
            Y = feature_rows(Y, "Y", validate=validate)
            if Y.shape[-2] != X.shape[-2]:
                raise MatrixShapeError(
                    f"X and Y must have the same number of rows, got {X.shape[-2]} and {Y.shape[-2]}"
                )
            right = _prepared(Y.to(X.dtype), shares, center=center, normalize=normalize)
        weighted = left / X.shape[-2] if shares is None else left * shares.unsqueeze(-1)
        product = full_precision_product(weighted.mT, right)
        return symmetrize(product) if Y is None else product


def gram(
    X: Tensor,
    *,
    center: bool = True,
    normalize: bool = False,
    weights: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """K_ij = √(w_i w_j) ⟨x_i − x̄, x_j − x̄⟩ / Σ w, the n×n companion of `covariance`.

    It has the same non-zero eigenvalues as `covariance(X, ...)` with the same options, hence the same entropy
    and effective rank, and is the smaller of the two when n < d. Refuses what `covariance` refuses.

    Args:
        X: (..., n, d) rows; bfloat16 and float16 are cast to float32.
        center: Subtract the mean row.
        normalize: First divide each row by its Euclidean norm; a zero row stays zero.
        weights: (..., n), not negative, not all zero; equal if None.
        validate: Check values, which makes the host wait for the device.

    Returns:
        (..., n, n) in float32 or float64, symmetric to the last bit.
    """
    X = feature_rows(X, "X", validate=validate)
    with autocast_off(X.device.type):
        shares = _shares(weights, X, validate=validate)
        rows = _prepared(X, shares, center=center, normalize=normalize)
        if shares is None:
            return symmetrize(full_precision_product(rows, rows.mT)) / X.shape[-2]
        roots = torch.where(shares > 0, torch.where(shares > 0, shares, 1).sqrt(), 0)  # no ∞ gradient at 0
        rows = rows * roots.unsqueeze(-1)
        return symmetrize(full_precision_product(rows, rows.mT))


def shrink(A: Tensor, shrinkage: float) -> Tensor:
    """(1 − ε) A + ε I/d: mix with the isotropic density, the matrix analogue of label smoothing.

    Keeps the trace of a trace-one matrix, and makes a singular one positive definite. Refuses matrices that are
    not square or not float32 or float64, as `matrix_log` does.

    Args:
        A: (..., d, d), float32 or float64.
        shrinkage: ε in [0, 1).

    Returns:
        (..., d, d), of A's dtype.

    Raises:
        MatrixInputError: ε is outside [0, 1).
    """
    A = square_matrices(A, "A")
    if not 0 <= shrinkage < 1:
        raise MatrixInputError(f"shrinkage must be in [0, 1), got {shrinkage}; 0.05 is the usual choice")
    size = A.shape[-1]
    return (1 - shrinkage) * A + (shrinkage / size) * torch.eye(size, dtype=A.dtype, device=A.device)


def density_matrix(
    X: Tensor, weights: Tensor | None = None, shrinkage: float = 0.0, *, validate: bool = True
) -> Tensor:
    """ρ = (1 − ε) Σ_i w_i x̂_i x̂_iᵀ / Σ_i w_i + ε I/d with x̂ = x/‖x‖: trace one, positive semi-definite.

    Refuses what `covariance` and `shrink` refuse.

    Args:
        X: (..., n, d) rows; bfloat16 and float16 are cast to float32.
        weights: (..., n), not negative, not all zero (probabilities, say); equal if None.
        shrinkage: ε in [0, 1).
        validate: Check values, which makes the host wait for the device. Without it a zero row that has weight
            makes the trace fall short of one.

    Returns:
        (..., d, d) in float32 or float64.

    Raises:
        ZeroMatrixError: A row with positive weight is zero, so it has no direction.
    """
    moment = covariance(X, center=False, normalize=True, weights=weights, validate=validate)
    if validate:
        zero = torch.linalg.vector_norm(X, dim=-1) == 0
        if weights is not None:
            zero = zero & (weights > 0)
        if bool(zero.any()):
            count, _, where = first_bad(zero, ("row",))
            raise ZeroMatrixError(
                f"X has {count} zero rows with positive weight, the first at {where}; a zero row has no direction. "
                f"Remove it or give it weight 0"
            )
    return shrink(moment, shrinkage)
