"""What the matrix functions refuse: the input, the error's type, and what its message says."""

import subprocess
import sys

import pytest
import torch

import mce_llm.matrix as matrix
from mce_llm.matrix import (
    IndefiniteError,
    MatrixDtypeError,
    MatrixInputError,
    MatrixShapeError,
    NotFiniteError,
    NotSymmetricError,
    SingularMatrixError,
    ZeroMatrixError,
)

EYE = torch.eye(3)
STACK = EYE.repeat(2, 4, 1, 1)


def changed(A, *assignments):
    A = A.clone()
    for index, value in assignments:
        A[index] = value
    return A


ONE_MATRIX = [matrix.matrix_log, matrix.matrix_entropy, matrix.effective_rank]
BAD_MATRICES = [
    (torch.ones(3), MatrixShapeError, r"square .* got shape \(3,\)"),
    (torch.ones(2, 3), MatrixShapeError, r"square .* got shape \(2, 3\)"),
    (torch.ones(5, 0, 0), MatrixShapeError, r"d >= 1, got shape \(5, 0, 0\)"),
    ([[1.0]], MatrixDtypeError, "torch.Tensor, got list"),
    (EYE.bfloat16(), MatrixDtypeError, "got torch.bfloat16.*cast to float32 first"),
    (EYE.half(), MatrixDtypeError, "got torch.float16.*cast to float32 first"),
    (EYE.long(), MatrixDtypeError, "float32 or float64, got torch.int64"),
    (EYE.cfloat(), MatrixDtypeError, "float32 or float64, got torch.complex64"),
    (
        changed(STACK, ((1, 2, 0, 1), torch.nan), ((1, 2, 1, 0), torch.nan)),
        NotFiniteError,
        r"A has 2 of 72 entries .* nan at batch index \(1, 2\), row 0, column 1",
    ),
    (changed(EYE, ((2, 2), torch.inf)), NotFiniteError, r"1 of 9 entries .* inf at row 2, column 2"),
    (
        changed(STACK, ((1, 0, 0, 2), 0.5)),
        NotSymmetricError,
        r"2 of 72 entries .* differs by 0.5 at batch index \(1, 0\), row 0, column 2, the limit is .*A \+ A.mT",
    ),
    (
        changed(STACK, ((0, 3, 1, 1), -0.25)),
        IndefiniteError,
        r"1 of 24 eigenvalues .* -0.25 at batch index \(0, 3\), eigenvalue 0, the limit is -",
    ),
    (-EYE, IndefiniteError, "3 of 3 eigenvalues are negative beyond rounding"),
]


@pytest.mark.parametrize("function", ONE_MATRIX)
@pytest.mark.parametrize(("A", "error", "pattern"), BAD_MATRICES)
def test_one_matrix(function, A, error, pattern):
    with pytest.raises(error, match=pattern) as caught:
        function(A)
    assert isinstance(caught.value, MatrixInputError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("function", [matrix.matrix_kl_divergence, matrix.matrix_cross_entropy])
@pytest.mark.parametrize(("A", "error", "pattern"), BAD_MATRICES)
def test_each_of_two_matrices(function, A, error, pattern):
    named = pattern.replace("A has", "{} has").replace(r"A \+ A.mT", r"{0} \+ {0}.mT")
    with pytest.raises(error, match=named.format("P") if "{" in named else named):
        function(A, EYE)
    with pytest.raises(error, match=named.format("Q") if "{" in named else named):
        function(EYE, A)


SINGULAR = [
    (torch.zeros(2, 2), "2 of 2 eigenvalues are zero to rounding"),
    (torch.ones(2, 2), r"1 of 2 eigenvalues .* at eigenvalue 0, the limit is .*shift ε·I"),
    (changed(STACK, ((1, 1, 0, 0), 0.0)), r"1 of 24 .* at batch index \(1, 1\), eigenvalue 0"),
]


@pytest.mark.parametrize(("A", "pattern"), SINGULAR)
def test_singular_matrices_have_no_logarithm_but_an_entropy(A, pattern):
    with pytest.raises(SingularMatrixError, match=pattern):
        matrix.matrix_log(A)
    for function in (matrix.matrix_kl_divergence, matrix.matrix_cross_entropy):
        with pytest.raises(SingularMatrixError, match=pattern):
            function(A, A)
        assert torch.isfinite(function(A, torch.eye(A.shape[-1]))).all()
    assert torch.isfinite(matrix.matrix_entropy(A)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [8, 64, 200])
def test_rank_deficient_gram_matrices_are_seen_as_singular(dtype, size):
    """Their computed smallest eigenvalue is rounding noise of either sign: not indefinite, and no logarithm."""
    for seed in range(5):
        X = torch.randn(
            size - 1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        ).to(dtype)
        with pytest.raises(SingularMatrixError):
            matrix.matrix_log(X.mT @ X)
        assert torch.isfinite(matrix.matrix_entropy(X.mT @ X))


@pytest.mark.parametrize("function", [matrix.matrix_kl_divergence, matrix.matrix_cross_entropy])
@pytest.mark.parametrize(
    ("P", "Q", "error", "pattern"),
    [
        (EYE, torch.eye(4), MatrixShapeError, "one size d, got 3 and 4"),
        (EYE.expand(2, 3, 3), EYE.expand(5, 3, 3), MatrixShapeError, r"broadcast, got \(2,\) and \(5,\)"),
        (EYE, EYE.double(), MatrixDtypeError, "one dtype, got torch.float32 and torch.float64"),
        (EYE, EYE.to("meta"), MatrixInputError, "one device, got cpu and meta"),
    ],
)
def test_pairs_that_do_not_fit(function, P, Q, error, pattern):
    with pytest.raises(error, match=pattern):
        function(P, Q)


X = torch.ones(4, 3)
BAD_ROWS = [
    (lambda: matrix.covariance(torch.ones(3)), MatrixShapeError, r"X must hold rows, .*got shape \(3,\)"),
    (lambda: matrix.covariance(torch.ones(0, 3)), MatrixShapeError, r"n >= 1 .* got shape \(0, 3\)"),
    (lambda: matrix.covariance(X.long()), MatrixDtypeError, "got torch.int64"),
    (lambda: matrix.covariance(X, X[:3]), MatrixShapeError, "same number of rows, got 4 and 3"),
    (
        lambda: matrix.covariance(changed(X, ((1, 2), torch.nan))),
        NotFiniteError,
        "1 of 12 .* row 1, column 2",
    ),
    (
        lambda: matrix.gram(X, weights=torch.ones(3)),
        MatrixShapeError,
        r"each of the 4 rows of X.*got shape \(3,\)",
    ),
    (
        lambda: matrix.gram(X, weights=[1, 1, 1, 1]),
        MatrixDtypeError,
        "weights must be a torch.Tensor, got list",
    ),
    (
        lambda: matrix.covariance(X, weights=torch.tensor([1.0, -2, 1, 1])),
        MatrixInputError,
        "1 of 4 are negative; the first is -2.0 at row 1",
    ),
    (lambda: matrix.covariance(X, weights=torch.zeros(4)), ZeroMatrixError, "positive sum"),
    (lambda: matrix.density_matrix(changed(X, (2, 0.0))), ZeroMatrixError, "1 zero rows .* first at row 2"),
    (lambda: matrix.shrink(EYE, 1.2), MatrixInputError, r"shrinkage must be in \[0, 1\), got 1.2; 0.05"),
    (lambda: matrix.shrink(EYE, -0.1), MatrixInputError, r"got -0.1"),
    (
        lambda: matrix.low_rank_log(X, 0.0),
        MatrixInputError,
        "shift must be a positive finite number, got 0.0",
    ),
    (lambda: matrix.low_rank_log(X[0], 1.0), MatrixShapeError, "X must hold rows"),
    (lambda: matrix.low_rank_log(X.bfloat16(), 1.0), MatrixDtypeError, "cast to float32 first"),
    (lambda: matrix.low_rank_log(X * torch.inf, 1.0), NotFiniteError, "12 of 12 entries"),
    (lambda: matrix.effective_rank(torch.zeros(2, 2)), ZeroMatrixError, "1 of 1 matrices have no positive"),
    (lambda: matrix.effective_rank_of_rows(X), ZeroMatrixError, "rows that are not all equal"),
    (
        lambda: matrix.effective_rank_of_rows(0 * X, center=False),
        ZeroMatrixError,
        "rows that are not all zero",
    ),
]


@pytest.mark.parametrize(("call", "error", "pattern"), BAD_ROWS)
def test_rows_and_options(call, error, pattern):
    with pytest.raises(error, match=pattern):
        call()


def test_dtype_error_is_a_type_error_too():
    assert issubclass(MatrixDtypeError, TypeError)


def test_without_validation_values_are_not_checked():
    assert torch.isnan(matrix.matrix_log(-EYE, validate=False)).all()
    asymmetric = changed(EYE, ((0, 1), 0.5))
    expected = matrix.matrix_entropy((asymmetric + asymmetric.mT) / 2)
    assert torch.equal(matrix.matrix_entropy(asymmetric, validate=False), expected)


def test_public_names_exist_and_only_torch_is_imported():
    for name in matrix.__all__:
        assert hasattr(matrix, name)
    script = "import sys, torch; before = set(sys.modules); import mce_llm.matrix; print(*(set(sys.modules) - before))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "mce_llm.matrix" in found
    assert {name.partition(".")[0] for name in found} <= {"mce_llm", "torch"}
