"""The errors that the matrix functions raise.

They say what is wrong with an input before it turns into a silent NaN: each message names the argument, the
value, the limit, where it was found, how often, and what to do instead. The checks that raise them are in
`mce_llm.matrix.checks`.
"""

from mce_llm.errors import MceLlmError


class MatrixInputError(MceLlmError, ValueError):
    """An argument of a matrix function cannot be used; the base of all errors here."""


class MatrixShapeError(MatrixInputError):
    """A shape is wrong: not square, empty, or sizes that do not fit together."""


class MatrixDtypeError(MatrixInputError, TypeError):
    """A dtype is not supported, or two arguments differ in dtype."""


class NotFiniteError(MatrixInputError):
    """An entry is infinite or NaN."""


class NotSymmetricError(MatrixInputError):
    """A matrix differs from its transpose by more than rounding."""


class IndefiniteError(MatrixInputError):
    """A matrix that must be positive semi-definite has an eigenvalue below minus the rounding tolerance."""


class SingularMatrixError(MatrixInputError):
    """The logarithm was asked of a matrix with an eigenvalue that is zero to rounding."""


class ZeroMatrixError(MatrixInputError):
    """A quantity that is relative to the trace was asked of a matrix whose trace is zero."""
