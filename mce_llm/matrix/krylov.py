"""−xᵀ log(Q) x and its gradient by Lanczos, for matrices known only through products with vectors.

`lanczos` builds an orthonormal basis and a tridiagonal matrix for each row; `tridiagonal_log` turns the
tridiagonal matrices into values and gradient cores; `log_quadratic_form` does both. Nothing here enters the
autograd graph: the gradient comes from the same basis, in closed form, instead of from differentiating the
recurrence. Source: Golub and Meurant, *Matrices, Moments and Quadrature* (Princeton, 2010), chapter 7.

Shape letters: T rows (tokens), D coordinates, M order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.matrix.checks import full_dtype_tensor, positive_number
from mce_llm.matrix.errors import MatrixDtypeError, MatrixInputError, MatrixShapeError
from mce_llm.matrix.logarithm import log_loewner
from mce_llm.matrix.precision import autocast_off, full_precision

# β below this many eps·‖Q v‖ is rounding. A Gram inner product knows β only to about √eps·‖Q v‖, yet a cut there
# would be wrong: confident rows have couplings that small, which decide how much of the smallest eigenvalues x
# sees (float32, shift 1e-5: a cut at 4·√eps put the gradient of a batch off by up to 700 %, one at 64·eps by
# 0.7 %, one at 8·eps by 0.2 %). A vector that carries only rounding is harmless: its length over the frame is as
# small as its weight in the core.
BREAKDOWN_IN_EPS = 32.0

Apply = Callable[[Tensor], Tensor]
Inner = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LanczosBasis:
    """What the recurrence leaves: V with Vᵀ V = I and Vᵀ Q V = tridiag(β, α, β), row by row.

    Attributes:
        basis: (T, M, D), orthonormal rows; zero from a row's breakdown on.
        alphas: (T, M), the diagonal; a harmless positive number from a row's breakdown on.
        betas: (T, M − 1), beside the diagonal; zero from a row's breakdown on.
        norm2: (T,), ‖x‖² of the start rows.
    """

    basis: Tensor
    alphas: Tensor
    betas: Tensor
    norm2: Tensor


@dataclass(frozen=True)
class TridiagonalLog:
    """Value and gradient core of −‖x‖² e₁ᵀ log(T) e₁.

    Attributes:
        value: (T,), nats times ‖x‖².
        previous: (T,), the value at order M − 1; None at order 1, which has no previous one.
        core: (T, M, M), symmetric: the derivative of the value with respect to the tridiagonal matrix.
    """

    value: Tensor
    previous: Tensor | None
    core: Tensor


@dataclass(frozen=True)
class LogQuadraticForm:
    """−xᵀ log(Q) x for each row, and ∂/∂Q ≈ Vᵀ core V.

    Attributes:
        value: (T,), nats times ‖x‖²; never above the true value, and increasing with the order.
        previous: (T,), the value at order M − 1; None at order 1. value − previous indicates the error.
        basis: (T, M, D), the rows of V.
        core: (T, M, M), symmetric.
    """

    value: Tensor
    previous: Tensor | None
    basis: Tensor
    core: Tensor

    def gradient(self) -> Tensor:
        """The dense ∂/∂Q, for tests and small sizes: (T, D, D)."""
        with full_precision(self.basis):
            return self.basis.mT @ self.core @ self.basis


def euclidean_inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_j, b⟩ for vectors in plain coordinates.

    Args:
        a: (T, J, D).
        b: (T, 1, D).

    Returns:
        (T, J).
    """
    return torch.matmul(a, b.mT).squeeze(-1)


def lanczos(
    apply: Apply, start: Tensor, order: int, *, inner: Inner | None = None, breakdown: float | None = None
) -> LanczosBasis:
    """Lanczos with full re-orthogonalisation (twice), all rows at once.

    A row whose next β is zero to rounding has found an invariant subspace: its result is exact, and it is frozen
    (zero vectors, β = 0) instead of divided by that β. A confident prediction, whose Q is nearly of rank one,
    does this at once. A zero start row is frozen from the beginning. A row whose numbers are not finite gets
    NaN in `norm2`, and is frozen, so that it spoils neither the other rows nor the eigensolver.

    Args:
        apply: v ↦ Q v for all rows at once, (T, D) → (T, D), linear, symmetric and positive semi-definite in
            `inner`. Called `order` times with autocast off; TF32 stays as the caller set it.
        start: x, (T, D), float32 or float64, of any length.
        order: M >= 1, the number of basis vectors; more than D is harmless.
        inner: ⟨a_j, b⟩ for a (T, J, D) and b (T, 1, D) → (T, J). The Euclidean product if None. For coordinates
            over a frame with Gram matrix G it is aᵀ G b: `lambda a, b: euclidean_inner(a, b @ G)`.
        breakdown: β counts as zero up to this multiple of ‖Q v‖; 32·eps if None.

    Returns:
        The basis and the tridiagonal matrices.

    Raises:
        MatrixShapeError: `start` is not (T, D), or `apply` changes the shape.
        MatrixDtypeError: `apply` changes the dtype.
        MatrixInputError: `order` is not a positive integer.
    """
    start = full_dtype_tensor(start, "start")
    if start.ndim != 2 or start.shape[1] == 0:
        raise MatrixShapeError(f"start must be rows, (T, D) with D >= 1, got shape {tuple(start.shape)}")
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise MatrixInputError(f"order must be an integer >= 1, got {order!r}; 8 is the usual choice")
    eps = torch.finfo(start.dtype).eps
    if breakdown is None:
        breakdown = BREAKDOWN_IN_EPS * eps
    product = euclidean_inner if inner is None else inner

    def squared_norm(rows_TD: Tensor) -> Tensor:
        with full_precision(rows_TD):
            return product(rows_TD.unsqueeze(1), rows_TD.unsqueeze(1)).squeeze(1)

    with torch.no_grad(), autocast_off(start.device.type):
        norm2 = squared_norm(start)
        broken = ~torch.isfinite(norm2)
        alive = (norm2 >= torch.finfo(start.dtype).tiny) & ~broken
        vector = _divided(start, norm2.sqrt(), alive)
        basis = torch.zeros(len(start), order, start.shape[1], dtype=start.dtype, device=start.device)
        alphas = torch.ones(len(start), order, dtype=start.dtype, device=start.device)
        betas = torch.zeros(len(start), order - 1, dtype=start.dtype, device=start.device)
        for step in range(order):
            basis[:, step] = vector
            image = apply(vector)
            if image.shape != start.shape:
                raise MatrixShapeError(
                    f"apply must keep the shape {tuple(start.shape)}, it returned {tuple(image.shape)}"
                )
            if image.dtype != start.dtype:
                raise MatrixDtypeError(f"apply must keep the dtype {start.dtype}, it returned {image.dtype}")
            size2 = squared_norm(image)
            broken = broken | (alive & ~torch.isfinite(size2))
            alive = alive & ~broken
            image = torch.where(alive.unsqueeze(-1), image, 0)
            # In a frame, the previous coefficients are known from the recurrence, but re-orthogonalising against
            # all of them is what keeps V orthonormal in float32.
            along = torch.zeros_like(vector[:, :1])
            for _ in range(2):
                with full_precision(image):
                    known = basis[:, : step + 1]
                    coefficients = product(known, image.unsqueeze(1))
                    image = image - torch.matmul(coefficients.unsqueeze(1), known).squeeze(1)
                along = along + coefficients[:, -1:]
            fill = alphas[:, :1] if step else torch.ones_like(along)
            alphas[:, step] = torch.where(alive.unsqueeze(-1), along, fill).squeeze(-1)
            if step + 1 < order:
                rest2 = squared_norm(image)
                alive = alive & (rest2 > breakdown**2 * size2)
                betas[:, step] = torch.where(alive, rest2.clamp(min=0).sqrt(), 0)
                vector = _divided(image, betas[:, step], alive)
        norm2 = torch.where(broken, torch.nan, norm2.clamp(min=0))
    return LanczosBasis(basis=basis, alphas=alphas, betas=betas, norm2=norm2)


def _divided(rows_TD: Tensor, lengths_T: Tensor, alive_T: Tensor) -> Tensor:
    """Rows over lengths where alive, zero elsewhere."""
    safe = torch.where(alive_T, lengths_T, 1).unsqueeze(-1)
    return torch.where(alive_T.unsqueeze(-1), rows_TD / safe, 0)


def tridiagonal_log(alphas: Tensor, betas: Tensor, norm2: Tensor, shift: float) -> TridiagonalLog:
    """−‖x‖² e₁ᵀ log(T) e₁ by Gauss quadrature, with its derivative M = −‖x‖² S (Γ ∘ s sᵀ) Sᵀ.

    T = S Θ Sᵀ is the tridiagonal matrix, s the first row of S, Γ the Loewner matrix of log at θ: the value is
    −‖x‖² Σ_i s_i² log θ_i. Eigenvalues θ below `shift`, which only rounding produces when Q ⪰ shift·I, count as
    `shift`. So the result is finite for any finite input.

    Args:
        alphas: (T, M), the diagonal, float32 or float64.
        betas: (T, M − 1), beside the diagonal.
        norm2: (T,), ‖x‖²; zero gives value 0, NaN gives NaN for that row alone.
        shift: A positive lower bound on the spectrum of Q.

    Returns:
        Value, previous value and core.

    Raises:
        MatrixShapeError: The shapes do not fit together.
    """
    alphas = full_dtype_tensor(alphas, "alphas")
    shift = positive_number(shift, "shift")
    rows, order = alphas.shape if alphas.ndim == 2 else (0, 0)
    if order == 0 or betas.shape != (rows, order - 1) or norm2.shape != (rows,):
        raise MatrixShapeError(
            f"alphas, betas and norm2 must be (T, M), (T, M − 1) and (T,) with M >= 1, got {tuple(alphas.shape)}, "
            f"{tuple(betas.shape)} and {tuple(norm2.shape)}"
        )
    with torch.no_grad(), full_precision(alphas):
        tridiagonal = torch.diag_embed(alphas)
        if order > 1:
            tridiagonal = tridiagonal + torch.diag_embed(betas, 1) + torch.diag_embed(betas, -1)
        theta, vectors = torch.linalg.eigh(tridiagonal)
        theta, first = theta.clamp(min=shift), vectors[:, 0]
        value = -norm2 * (first.square() * theta.log()).sum(-1)
        previous = None
        if order > 1:
            shorter, shorter_vectors = torch.linalg.eigh(tridiagonal[:, :-1, :-1])
            previous = -norm2 * (shorter_vectors[:, 0].square() * shorter.clamp(min=shift).log()).sum(-1)
        loewner = log_loewner(theta.unsqueeze(-1), theta.unsqueeze(-2))
        core = vectors @ (loewner * first.unsqueeze(-1) * first.unsqueeze(-2)) @ vectors.mT
        core = -norm2[:, None, None] * (core + core.mT) / 2
    return TridiagonalLog(value=value, previous=previous, core=core)


def log_quadratic_form(
    apply: Apply,
    start: Tensor,
    order: int,
    *,
    shift: float,
    inner: Inner | None = None,
    breakdown: float | None = None,
) -> LogQuadraticForm:
    """f(Q) = −xᵀ log(Q) x for every row, with ∂f/∂Q ≈ Vᵀ M V, by Lanczos of the given order.

    The value is the Gauss quadrature of order M: it never exceeds f, increases with the order, and is exact once
    the Krylov space of (Q, x) is exhausted. The gradient is the exact one of that compressed problem. Costs
    `order` calls of `apply`. Refuses what `lanczos` and `tridiagonal_log` refuse.

    Args:
        apply: v ↦ Q v for all rows, (T, D) → (T, D); see `lanczos`.
        start: x, (T, D), float32 or float64; rows may be zero (value 0, core 0) and of any length.
        order: M >= 1.
        shift: A positive number with Q ⪰ shift·I, known exactly for Q = … + shift·I.
        inner: The inner product, Euclidean if None; see `lanczos`. With another one, basis rows are coordinate
            vectors c of Σ_k c_k f_k over the caller's frame f.
        breakdown: See `lanczos`.

    Returns:
        Values, previous values, basis and cores, outside the autograd graph.
    """
    run = lanczos(apply, start, order, inner=inner, breakdown=breakdown)
    log = tridiagonal_log(run.alphas, run.betas, run.norm2, shift)
    return LogQuadraticForm(value=log.value, previous=log.previous, basis=run.basis, core=log.core)
