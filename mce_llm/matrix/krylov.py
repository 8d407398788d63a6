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
from mce_llm.matrix.tridiagonal_poles import log_by_poles, log_poles

# β below this many eps·‖Q v‖ is rounding. A Gram inner product knows β only to about √eps·‖Q v‖, yet a cut there
# would be wrong: confident rows have couplings that small, which decide how much of the smallest eigenvalues x
# sees (float32, shift 1e-5: a cut at 4·√eps put the gradient of a batch off by up to 700 %, one at 64·eps by
# 0.7 %, one at 8·eps by 0.2 %). A vector that carries only rounding is harmless: its length over the frame is as
# small as its weight in the core.
BREAKDOWN_IN_EPS = 32.0
# How exact a Gram matrix is, in eps of its largest entry. Where a frame has more vectors than dimensions, a vector of
# rounding alone may pass as one of length one, by coordinates so large that these errors outweigh it. Eigenvectors give
# it no weight in the end; pivots have no such insight: frames of 33 to 129 rows in 2 to 32 dimensions had gradients
# off by powers of ten without a cut at it. Cuts at 4 to 16 gave what eigenvectors give.
GRAM_EPS = 16

Apply = Callable[..., Tensor]
Quadratic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LanczosBasis:
    """The result of the recurrence for each row: V with Vᵀ V = I and Vᵀ Q V = tridiag(β, α, β).

    Attributes:
        basis: (T, M, D), orthonormal rows; zero from a row's breakdown on.
        duals: (T, M, D), G v of the basis rows v over a frame; `basis` itself without a Gram matrix.
        alphas: (T, M), the diagonal; from a row's breakdown on a positive number without effect on the result.
        betas: (T, M − 1), beside the diagonal; zero from a row's breakdown on.
        norm2: (T,), ‖x‖² of the start rows.
    """

    basis: Tensor
    duals: Tensor
    alphas: Tensor
    betas: Tensor
    norm2: Tensor


@dataclass(frozen=True)
class TridiagonalLog:
    """Value and gradient core of −‖x‖² e₁ᵀ log(T) e₁.

    Attributes:
        value: (T,), nats times ‖x‖².
        previous: (T,), the value at order M − 1, where it was asked for and the order is not 1; None otherwise.
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
        previous: (T,), the value at order M − 1, where it was asked for and the order is not 1; None otherwise.
            value − previous indicates the error.
        basis: (T, M, D), the rows of V.
        duals: (T, M, D), G v of the basis rows over a frame; `basis` itself without a Gram matrix.
        core: (T, M, M), symmetric.
    """

    value: Tensor
    previous: Tensor | None
    basis: Tensor
    duals: Tensor
    core: Tensor

    def gradient(self) -> Tensor:
        """The dense ∂/∂Q, for tests and small sizes: (T, D, D)."""
        with full_precision(self.basis):
            return self.basis.mT @ self.core @ self.basis


def lanczos(
    apply: Apply,
    start: Tensor,
    order: int,
    *,
    gram: Tensor | None = None,
    quadratic: Quadratic | None = None,
    breakdown: float | None = None,
) -> LanczosBasis:
    """Lanczos with full re-orthogonalisation (twice), all rows at once.

    A row whose next β is zero to rounding has found an invariant subspace: its result is exact, and it is frozen
    (zero vectors, β = 0) instead of divided by that β. A confident prediction, whose Q is nearly of rank one,
    does this at once. A zero start row is frozen from the beginning. A row whose numbers are not finite gets
    NaN in `norm2`, and is frozen, so that it spoils neither the other rows nor the eigensolver.

    Args:
        apply: v ↦ Q v for all rows at once, (T, D) → (T, D), linear, symmetric and positive semi-definite in the
            inner product. Called with autocast off, as `apply(v)`, or as `apply(v, G v)` where there is a Gram
            matrix; TF32 stays as the caller set it.
        start: x, (T, D), float32 or float64, of any length.
        order: M >= 1, the number of basis vectors; more than D is harmless.
        gram: G, (T, D, D), where rows are coordinates c of Σ_k c_k f_k over a frame f with ⟨f_j, f_k⟩ = G_jk; the
            inner product is then aᵀ G b. It may be singular. Three products with G are formed for a basis vector.
        quadratic: v ↦ ⟨v, Q v⟩, (T, D) → (T,), called once, for the last basis vector, of which only this is needed.
            By default `apply` is called there too.
        breakdown: β counts as zero up to this multiple of ‖Q v‖; 32·eps if None.

    Returns:
        The basis and the tridiagonal matrices.

    Raises:
        MatrixShapeError: `start` is not (T, D), `gram` is not (T, D, D), or `apply` changes the shape.
        MatrixDtypeError: `apply` changes the dtype, or `gram` has another.
        MatrixInputError: `order` is not a positive integer.
    """
    start = full_dtype_tensor(start, "start")
    if start.ndim != 2 or start.shape[1] == 0:
        raise MatrixShapeError(f"start must be rows, (T, D) with D >= 1, got shape {tuple(start.shape)}")
    if gram is not None and gram.shape != (*start.shape, start.shape[1]):
        raise MatrixShapeError(
            f"gram must be (T, D, D) for start of shape {tuple(start.shape)}, got {tuple(gram.shape)}"
        )
    if gram is not None and gram.dtype != start.dtype:
        raise MatrixDtypeError(f"gram must have the dtype of start, {start.dtype}, got {gram.dtype}")
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise MatrixInputError(f"order must be an integer >= 1, got {order!r}; 8 is the usual choice")
    if breakdown is None:
        breakdown = BREAKDOWN_IN_EPS * torch.finfo(start.dtype).eps

    def dual(rows_TD: Tensor) -> Tensor:
        return rows_TD if gram is None else _rows_times(gram, rows_TD)

    with torch.no_grad(), full_precision(start):
        tokens, width = start.shape
        start_dual = dual(start)
        norm2 = (start * start_dual).sum(-1)
        # ‖c‖² times this is what rounding of the Gram matrix may make of ‖Σ_k c_k f_k‖² for coordinates c.
        blur = None
        if gram is not None:
            blur = GRAM_EPS * torch.finfo(start.dtype).eps * gram.diagonal(dim1=-2, dim2=-1).amax(-1)
        broken = ~torch.isfinite(norm2)
        alive = (norm2 >= torch.finfo(start.dtype).tiny) & ~broken
        vector = _divided(start, norm2.sqrt(), alive)
        vector_dual = vector if gram is None else _divided(start_dual, norm2.sqrt(), alive)
        basis = start.new_zeros(tokens, order, width)
        duals = basis if gram is None else torch.zeros_like(basis)
        alphas = start.new_ones(tokens, order)
        betas = start.new_zeros(tokens, order - 1)
    for step in range(order):
        basis[:, step] = vector
        if gram is not None:
            duals[:, step] = vector_dual
        if step + 1 == order and quadratic is not None:
            with torch.no_grad(), autocast_off(start.device.type):
                along = quadratic(vector)
            broken = broken | (alive & ~torch.isfinite(along))
            alphas[:, step] = torch.where(alive & ~broken, along, alphas[:, 0] if step else 1)
            break
        with torch.no_grad(), autocast_off(start.device.type):
            image = apply(vector) if gram is None else apply(vector, vector_dual)
        if image.shape != start.shape:
            raise MatrixShapeError(
                f"apply must keep the shape {tuple(start.shape)}, it returned {tuple(image.shape)}"
            )
        if image.dtype != start.dtype:
            raise MatrixDtypeError(f"apply must keep the dtype {start.dtype}, it returned {image.dtype}")
        with torch.no_grad(), full_precision(start):
            image_dual = dual(image)
            size2 = (image * image_dual).sum(-1)
            broken = broken | (alive & ~torch.isfinite(size2))
            alive = alive & ~broken
            image = torch.where(alive.unsqueeze(-1), image, 0)
            image_dual = torch.where(alive.unsqueeze(-1), image_dual, 0)
            # The recurrence knows most coefficients already, but re-orthogonalising against the whole basis, and
            # twice, is what keeps it orthonormal in float32. G meets the image anew each time: a singular G leaves
            # large coordinates that mean nothing, and only a fresh product makes them vanish.
            along = torch.zeros_like(size2)
            known = basis[:, : step + 1]
            for _ in range(2):
                coefficients = _rows_times(known, image_dual)
                image = torch.baddbmm(image.unsqueeze(1), coefficients.unsqueeze(1), known, alpha=-1).squeeze(
                    1
                )
                image_dual = dual(image)
                along = along + coefficients[:, -1]
            alphas[:, step] = torch.where(alive, along, alphas[:, 0] if step else 1)
            if step + 1 < order:
                rest2 = (image * image_dual).sum(-1)
                alive = alive & (rest2 > breakdown**2 * size2)
                if blur is not None:
                    alive = alive & (rest2 > blur * image.square().sum(-1))
                betas[:, step] = torch.where(alive, rest2.clamp(min=0).sqrt(), 0)
                vector = _divided(image, betas[:, step], alive)
                vector_dual = vector if gram is None else _divided(image_dual, betas[:, step], alive)
    norm2 = torch.where(broken, torch.nan, norm2.clamp(min=0))
    return LanczosBasis(basis=basis, duals=duals, alphas=alphas, betas=betas, norm2=norm2)


def _rows_times(matrices: Tensor, rows: Tensor) -> Tensor:
    """Each (J, D) matrix times its own (D,) row: (T, J, D), (T, D) → (T, J)."""
    return torch.matmul(matrices, rows.unsqueeze(-1)).squeeze(-1)


def _divided(rows_TD: Tensor, lengths_T: Tensor, alive_T: Tensor) -> Tensor:
    """Rows over lengths where alive, zero elsewhere."""
    safe = torch.where(alive_T, lengths_T, 1).unsqueeze(-1)
    return torch.where(alive_T.unsqueeze(-1), rows_TD / safe, 0)


def tridiagonal_log(
    alphas: Tensor,
    betas: Tensor,
    norm2: Tensor,
    shift: float,
    *,
    previous: bool = True,
    largest: float | None = None,
) -> TridiagonalLog:
    """−‖x‖² e₁ᵀ log(T) e₁ by Gauss quadrature, with its derivative M = −‖x‖² S (Γ ∘ s sᵀ) Sᵀ.

    T = S Θ Sᵀ is the tridiagonal matrix, s the first row of S, Γ the Loewner matrix of log at θ: the value is
    −‖x‖² Σ_i s_i² log θ_i. Eigenvalues θ below `shift`, which only rounding produces when Q ⪰ shift·I, count as
    `shift`. So the result is finite for any finite input.

    In float32 and with a bound on the spectrum that is not too far from `shift` the same comes from resolvents at fixed
    poles, to rounding: without an eigendecomposition, for which a GPU makes the host wait.

    Args:
        alphas: (T, M), the diagonal, float32 or float64.
        betas: (T, M − 1), beside the diagonal.
        norm2: (T,), ‖x‖²; zero gives value 0, NaN gives NaN for that row alone.
        shift: A positive lower bound on the spectrum of Q.
        previous: Form the value at order M − 1 too, which costs a second eigendecomposition.
        largest: An upper bound on the spectrum of Q, where one is known.

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
    poles = log_poles(shift, largest) if largest is not None and alphas.dtype == torch.float32 else None
    if poles is not None:
        with torch.no_grad(), autocast_off(alphas.device.type):
            return TridiagonalLog(*log_by_poles(alphas, betas, norm2, poles, previous=previous))
    with torch.no_grad(), full_precision(alphas):
        tridiagonal = torch.diag_embed(alphas)
        if order > 1:
            tridiagonal = tridiagonal + torch.diag_embed(betas, 1) + torch.diag_embed(betas, -1)
        theta, vectors = torch.linalg.eigh(tridiagonal)
        theta, first = theta.clamp(min=shift), vectors[:, 0]
        value = -norm2 * (first.square() * theta.log()).sum(-1)
        value_before = None
        if previous and order > 1:
            shorter, shorter_vectors = torch.linalg.eigh(tridiagonal[:, :-1, :-1])
            value_before = -norm2 * (shorter_vectors[:, 0].square() * shorter.clamp(min=shift).log()).sum(-1)
        loewner = log_loewner(theta.unsqueeze(-1), theta.unsqueeze(-2))
        core = vectors @ (loewner * first.unsqueeze(-1) * first.unsqueeze(-2)) @ vectors.mT
        core = -norm2[:, None, None] * (core + core.mT) / 2
    return TridiagonalLog(value=value, previous=value_before, core=core)


def log_quadratic_form(
    apply: Apply,
    start: Tensor,
    order: int,
    *,
    shift: float,
    gram: Tensor | None = None,
    quadratic: Quadratic | None = None,
    previous: bool = True,
    breakdown: float | None = None,
    largest: float | None = None,
) -> LogQuadraticForm:
    """f(Q) = −xᵀ log(Q) x for every row, with ∂f/∂Q ≈ Vᵀ M V, by Lanczos of the given order.

    The value is the Gauss quadrature of order M: it never exceeds f, increases with the order, and is exact once
    the Krylov space of (Q, x) is exhausted. The gradient is the exact one of that compressed problem. Costs
    `order` calls of `apply`, the last of which `quadratic` replaces where it is given. Refuses what `lanczos` and
    `tridiagonal_log` refuse.

    Args:
        apply: v ↦ Q v for all rows, (T, D) → (T, D); see `lanczos`.
        start: x, (T, D), float32 or float64; rows may be zero (value 0, core 0) and of any length.
        order: M >= 1.
        shift: A positive number with Q ⪰ shift·I, known exactly for Q = … + shift·I.
        gram: (T, D, D), the Gram matrix of the caller's frame f, where rows are coordinates c of Σ_k c_k f_k;
            plain coordinates if None. See `lanczos`.
        quadratic: v ↦ ⟨v, Q v⟩ for the last basis vector; see `lanczos`.
        previous: Report the value at order M − 1 too.
        breakdown: See `lanczos`.
        largest: An upper bound on the spectrum of Q, where one is known; see `tridiagonal_log`.

    Returns:
        Values, previous values, basis and cores, outside the autograd graph.
    """
    run = lanczos(apply, start, order, gram=gram, quadratic=quadratic, breakdown=breakdown)
    log = tridiagonal_log(run.alphas, run.betas, run.norm2, shift, previous=previous, largest=largest)
    return LogQuadraticForm(
        value=log.value, previous=log.previous, basis=run.basis, duals=run.duals, core=log.core
    )
