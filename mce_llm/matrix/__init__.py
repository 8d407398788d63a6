"""Matrix information in pure torch: logarithm, entropy, divergences, effective rank, covariance, Krylov.

All quantities are in nats, batched over leading dimensions, in float32 or float64. Nothing here knows about
language models or images; the module imports torch alone.
"""

from mce_llm.matrix.covariance import covariance, density_matrix, gram, shrink
from mce_llm.matrix.effective_rank import effective_rank, effective_rank_of_rows
from mce_llm.matrix.errors import (
    IndefiniteError,
    MatrixDtypeError,
    MatrixInputError,
    MatrixShapeError,
    NotFiniteError,
    NotSymmetricError,
    SingularMatrixError,
    ZeroMatrixError,
)
from mce_llm.matrix.information import matrix_cross_entropy, matrix_entropy, matrix_kl_divergence
from mce_llm.matrix.krylov import (
    LanczosBasis,
    LogQuadraticForm,
    TridiagonalLog,
    lanczos,
    log_quadratic_form,
    tridiagonal_log,
)
from mce_llm.matrix.logarithm import log_loewner, matrix_log, matrix_log_frechet
from mce_llm.matrix.low_rank import low_rank_log
from mce_llm.matrix.precision import full_precision, full_precision_product
from mce_llm.matrix.rational_log import RationalLogWarning

__all__ = [
    "IndefiniteError",
    "LanczosBasis",
    "LogQuadraticForm",
    "MatrixDtypeError",
    "MatrixInputError",
    "MatrixShapeError",
    "NotFiniteError",
    "NotSymmetricError",
    "RationalLogWarning",
    "SingularMatrixError",
    "TridiagonalLog",
    "ZeroMatrixError",
    "covariance",
    "density_matrix",
    "effective_rank",
    "effective_rank_of_rows",
    "full_precision",
    "full_precision_product",
    "gram",
    "lanczos",
    "log_loewner",
    "log_quadratic_form",
    "low_rank_log",
    "matrix_cross_entropy",
    "matrix_entropy",
    "matrix_kl_divergence",
    "matrix_log",
    "matrix_log_frechet",
    "shrink",
    "tridiagonal_log",
]
