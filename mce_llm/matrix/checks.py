"""Checks of matrix arguments, shared by the matrix functions.

Shape and dtype checks cost nothing and always run. Checks of values (finite, symmetric, definite) read numbers
back from the device, which makes the host wait for it; they run where the caller says `validate=True`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mce_llm.matrix.errors import (
    IndefiniteError,
    MatrixDtypeError,
    MatrixInputError,
    MatrixShapeError,
    NotFiniteError,
    NotSymmetricError,
    SingularMatrixError,
)

FULL_DTYPES = (torch.float32, torch.float64)
LOW_DTYPES = (torch.bfloat16, torch.float16)

# A − Aᵀ of a product such as XᵀX grows like √n·eps with the number of summed terms; 4096·eps is 5e-4 in
# float32, beyond any sum in use, and far below the asymmetry of a matrix that was passed by mistake.
ASYMMETRY_IN_EPS = 4096
# Computed zero eigenvalues of rank-deficient Gram matrices were seen within 0.3·eps·λ_max (d = 8 … 1024, both
# dtypes); 4 leaves room, and still lets float32 matrices of condition number 1e6 through.
ZERO_IN_EPS = 4


def full_dtype_tensor(value: object, name: str) -> Tensor:
    """The argument itself, if it is a float32 or float64 tensor.

    Args:
        value: What the caller passed.
        name: The argument's name, for the message.

    Returns:
        The same tensor.

    Raises:
        MatrixDtypeError: It is no tensor, or of another dtype.
    """
    if not isinstance(value, Tensor):
        raise MatrixDtypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype in LOW_DTYPES:
        raise MatrixDtypeError(
            f"{name} must be float32 or float64, got {value.dtype}: its rounding alone makes small eigenvalues "
            f"negative; cast to float32 first, before the products that form it"
        )
    if value.dtype not in FULL_DTYPES:
        raise MatrixDtypeError(f"{name} must be float32 or float64, got {value.dtype}; cast to float32 first")
    return value


def square_matrices(value: object, name: str) -> Tensor:
    """The argument itself, if it is a (..., d, d) float32 or float64 tensor with d >= 1.

    Args:
        value: What the caller passed.
        name: The argument's name, for the message.

    Returns:
        The same tensor.

    Raises:
        MatrixShapeError: It has fewer than two dimensions, is not square, or has d = 0.
    """
    tensor = full_dtype_tensor(value, name)
    shape = tuple(tensor.shape)
    if tensor.ndim < 2 or shape[-1] != shape[-2]:
        raise MatrixShapeError(
            f"{name} must be square in its last two dimensions, (..., d, d), got shape {shape}"
        )
    if shape[-1] == 0:
        raise MatrixShapeError(
            f"{name} must have d >= 1, got shape {shape}; a matrix of size 0 has no entropy"
        )
    return tensor


def row_matrices(value: object, name: str) -> Tensor:
    """The argument itself, if it is a (..., n, d) float32 or float64 tensor with n >= 1 and d >= 1.

    Args:
        value: What the caller passed.
        name: The argument's name, for the message.

    Returns:
        The same tensor.

    Raises:
        MatrixShapeError: It has fewer than two dimensions, or no rows, or no columns.
    """
    rows = full_dtype_tensor(value, name)
    if rows.ndim < 2 or 0 in rows.shape[-2:]:
        raise MatrixShapeError(
            f"{name} must hold rows, (..., n, d) with n >= 1 and d >= 1, got shape {tuple(rows.shape)}"
        )
    return rows


def matching_matrices(P: Tensor, Q: Tensor) -> torch.Size:
    """The common batch shape of two stacks of square matrices.

    Args:
        P: (..., d, d).
        Q: (..., d, d).

    Returns:
        The broadcast batch shape.

    Raises:
        MatrixShapeError: The sizes differ or the batch dimensions do not broadcast.
        MatrixDtypeError: The dtypes differ.
        MatrixInputError: The devices differ.
    """
    if P.dtype != Q.dtype:
        raise MatrixDtypeError(f"P and Q must have one dtype, got {P.dtype} and {Q.dtype}; cast one of them")
    if P.device != Q.device:
        raise MatrixInputError(
            f"P and Q must be on one device, got {P.device} and {Q.device}; move one of them"
        )
    if P.shape[-1] != Q.shape[-1]:
        raise MatrixShapeError(f"P and Q must have one size d, got {P.shape[-1]} and {Q.shape[-1]}")
    try:
        return torch.broadcast_shapes(P.shape[:-2], Q.shape[:-2])
    except RuntimeError:
        raise MatrixShapeError(
            f"the batch dimensions of P and Q must broadcast, got {tuple(P.shape[:-2])} and {tuple(Q.shape[:-2])}"
        ) from None


def place(index: Sequence[int], names: Sequence[str] = ("row", "column")) -> str:
    """An index in words: 'batch index (1, 0), row 2, column 3'.

    Args:
        index: A full index into a tensor.
        names: What its last dimensions are called; earlier ones are batch dimensions.

    Returns:
        The words.
    """
    split = len(index) - len(names)
    words = [f"batch index {tuple(index[:split])}"] if split else []
    return ", ".join(words + [f"{name} {i}" for name, i in zip(names, index[split:], strict=True)])


def first_bad(bad: Tensor, names: Sequence[str] = ("row", "column")) -> tuple[int, tuple[int, ...], str]:
    """How many entries of a mask are set, the first one's index, and words for it.

    Args:
        bad: A boolean tensor with at least one entry set.
        names: What its last dimensions are called.

    Returns:
        The count, the index, and the words.
    """
    indices = bad.nonzero()
    index = tuple(int(i) for i in indices[0])
    return len(indices), index, place(index, names)


def require_finite(tensor: Tensor, name: str, names: Sequence[str] = ("row", "column")) -> None:
    """Refuse infinite and NaN entries.

    Args:
        tensor: Any floating-point tensor.
        name: The argument's name.
        names: What its last dimensions are called.

    Raises:
        NotFiniteError: An entry is not finite.
    """
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        count, index, where = first_bad(bad, names)
        raise NotFiniteError(
            f"{name} has {count} of {bad.numel()} entries that are not finite; the first is "
            f"{float(tensor[index])} at {where}. Look for an overflow or a division by zero where it is formed"
        )


def require_symmetric(A: Tensor, name: str) -> None:
    """Refuse matrices that differ from their transpose by more than rounding.

    Args:
        A: (..., d, d), finite.
        name: The argument's name.

    Raises:
        NotSymmetricError: max |A − Aᵀ| exceeds 4096·eps·max |A| in some matrix of the stack.
    """
    difference = (A - A.mT).abs()
    limit = ASYMMETRY_IN_EPS * torch.finfo(A.dtype).eps * A.abs().amax(dim=(-2, -1), keepdim=True)
    bad = difference > limit
    if bool(bad.any()):
        count, index, where = first_bad(bad)
        raise NotSymmetricError(
            f"{name} must be symmetric: {count} of {bad.numel()} entries differ from their mirror image; the first "
            f"differs by {float(difference[index]):.3g} at {where}, the limit is {float(limit[(*index[:-2], 0, 0)]):.3g}. "
            f"Pass ({name} + {name}.mT) / 2 if the asymmetry is rounding"
        )


def require_finite_symmetric(A: Tensor, name: str) -> None:
    """Refuse matrices with infinite or NaN entries, or that differ from their transpose by more than rounding."""
    require_finite(A, name)
    require_symmetric(A, name)


def zero_tolerance(eigenvalues: Tensor) -> Tensor:
    """4·eps·max |λ|: eigenvalues up to here are zero to rounding.

    Args:
        eigenvalues: (..., d).

    Returns:
        (..., 1).
    """
    return ZERO_IN_EPS * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().amax(dim=-1, keepdim=True)


def require_positive_semidefinite(eigenvalues: Tensor, name: str) -> None:
    """Refuse eigenvalues below −max(4, d)·eps·max |λ|, which rounding alone does not make.

    Args:
        eigenvalues: (..., d).
        name: The matrix argument's name.

    Raises:
        IndefiniteError: An eigenvalue is below the limit.
    """
    size = eigenvalues.shape[-1]
    limit = -zero_tolerance(eigenvalues) * max(1.0, size / ZERO_IN_EPS)
    bad = eigenvalues < limit
    if bool(bad.any()):
        count, index, where = first_bad(bad, ("eigenvalue",))
        raise IndefiniteError(
            f"{name} must be positive semi-definite: {count} of {bad.numel()} eigenvalues are negative beyond "
            f"rounding; the first is {float(eigenvalues[index]):.3g} at {where}, the limit is "
            f"{float(limit[(*index[:-1], 0)]):.3g}. A covariance formed in low precision does this: form it with "
            f"mce_llm.matrix.covariance"
        )


def require_positive_definite(eigenvalues: Tensor, name: str) -> None:
    """Refuse eigenvalues that are negative, or zero to rounding.

    Args:
        eigenvalues: (..., d).
        name: The matrix argument's name.

    Raises:
        SingularMatrixError: An eigenvalue is zero to rounding, so its logarithm would be noise or −∞.
    """
    require_positive_semidefinite(eigenvalues, name)
    limit = zero_tolerance(eigenvalues)
    bad = eigenvalues <= limit
    if bool(bad.any()):
        count, index, where = first_bad(bad, ("eigenvalue",))
        raise SingularMatrixError(
            f"{name} must be positive definite to have a logarithm: {count} of {bad.numel()} eigenvalues are zero to "
            f"rounding; the first is {float(eigenvalues[index]):.3g} at {where}, the limit is "
            f"{float(limit[(*index[:-1], 0)]):.3g}. Add a shift ε·I, e.g. shrink({name}, 1e-3)"
        )


def positive_number(value: float, name: str) -> float:
    """The argument itself, if it is a positive finite number.

    Args:
        value: What the caller passed.
        name: The argument's name.

    Returns:
        The same number as a float.

    Raises:
        MatrixInputError: It is not a positive finite number.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise MatrixInputError(
            f"{name} must be a positive finite number, got {value!r}; it keeps the logarithm finite"
        )
    return float(value)
