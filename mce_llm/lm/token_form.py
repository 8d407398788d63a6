"""−ê_yᵀ log(Q) ê_y over small frames of token rows, value and gradient: the core of the `token` loss with a support.

A frame is the label's row and those of the kept tokens. Q lives on its span and on an isotropic background, so
its Gram matrix, (F, F) a position, is all that Lanczos needs.
Legend: C positions of the chunk, D embedding width, F frame vectors, B positions of a block, N rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mce_llm.lm.chunk_sizes import elements_on
from mce_llm.lm.float32_products import gram_
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.matrix.krylov import log_quadratic_form
from mce_llm.matrix.precision import full_precision

# Elements of the rows that are gathered at a time. On a CPU they are read three times, and should stay in a cache.
_GATHERED_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}
_LEAST_GATHERED = 2**20
# Products of raw rows hold those of the mean, which are then taken out: of their digits, the square of ‖μ‖ over the
# rows' own length is lost. Measured against float64: 8e-7 of the gradient at a ratio of 1, 1.4e-4 at 20.
_MOST_OF_MEAN = 6.0


@dataclass(frozen=True)
class TokenForm:
    """The quadratic form of one chunk.

    Attributes:
        value_C: −ê_yᵀ log(Q) ê_y, nats times ‖ê_y‖²; never above the true value.
        gradient_CF: Its derivative in the weight of each frame vector.
        trace_C: tr of its derivative in Q, on the span that Lanczos has seen: d times its derivative in the background.
        previous_C: The value at one order less, where it was asked for and the order is not 1; None otherwise.
    """

    value_C: Tensor
    gradient_CF: Tensor
    trace_C: Tensor
    previous_C: Tensor | None


def token_form(
    geometry: TokenGeometry,
    ids_CF: Tensor,
    weights_CF: Tensor,
    shift_C: Tensor,
    *,
    order: int,
    floor: float,
    gap: bool,
    memory: int,
) -> TokenForm:
    """−ê_yᵀ log(Q) ê_y with Q = Σ_f w_f ê_f ê_fᵀ + shift · I and y = f₀, by Lanczos in coordinates over the frame.

    Args:
        geometry: The token rows ê, constant.
        ids_CF: The tokens of each frame, the label first.
        weights_CF: w ≥ 0, of the geometry's dtype; 0 where a row has no direction, and at the second place of a token that
            stands in the frame twice.
        shift_C: The background, at least `floor`.
        order: Of Lanczos, M ≥ 1.
        floor: Positive; no eigenvalue of any Q is below.
        gap: Report `previous_C`.
        memory: Elements that gathered rows may have at a time, at most.

    Returns:
        Value and derivatives, outside the autograd graph.
    """
    gram_CFF = frame_gram(geometry, ids_CF, memory)
    shift_C1 = shift_C.unsqueeze(-1)

    def apply(coordinates_CF: Tensor, products_CF: Tensor) -> Tensor:
        return torch.addcmul(shift_C1 * coordinates_CF, weights_CF, products_CF)

    start_CF = torch.zeros_like(weights_CF)
    start_CF[:, 0] = 1
    form = log_quadratic_form(
        apply,
        start_CF,
        order,
        shift=floor,
        gram=gram_CFF,
        previous=gap,
        largest=max(1.0, geometry.largest_squared_length),
    )
    with full_precision(weights_CF):
        gradient_CF = ((form.core @ form.duals) * form.duals).sum(dim=1)
    return TokenForm(form.value, gradient_CF, trace(form.core), form.previous)


def trace(matrices: Tensor) -> Tensor:
    """Tr of each matrix, (..., M, M) → (...)."""
    return matrices.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def frame_gram(geometry: TokenGeometry, ids_CF: Tensor, memory: int) -> Tensor:
    """⟨ê_i, ê_j⟩ of the tokens of each frame.

    Rows of a low-precision table on a GPU are multiplied as they are, where the mean is not much larger than they are and
    the frame has no more of them than dimensions: their products are exact in float32, and tensor cores form them. Otherwise rows are centred in float32 first.

    Args:
        geometry: The token rows ê.
        ids_CF: Token ids.
        memory: Elements that gathered rows may have at a time, at most.

    Returns:
        (C, F, F), float32, or float64 for a float64 table.
    """
    positions, size = ids_CF.shape
    gram_CFF = geometry.mean_D.new_empty(positions, size, size)
    elements = min(elements_on(ids_CF.device, _GATHERED_ELEMENTS), max(memory, _LEAST_GATHERED))
    block = min(max(1, elements // (size * geometry.width)), positions)
    scale_CF = geometry.scale_V[ids_CF]
    # More rows than dimensions leave a singular matrix, of which Lanczos needs every digit (`krylov.GRAM_EPS`).
    raw = geometry.along_mean_V is not None and size <= geometry.width
    if raw and geometry.mean_ratio <= _MOST_OF_MEAN:
        raw_gram_(geometry, ids_CF, gram_CFF, block)
    else:
        buffer_ND = geometry.mean_D.new_empty(block * size, geometry.width)
        with full_precision(gram_CFF):
            for ids_BF, gram_BFF in zip(ids_CF.split(block), gram_CFF.split(block), strict=True):
                rows_ND = geometry.centred_rows(ids_BF.flatten(), out=buffer_ND[: ids_BF.numel()])
                rows_BFD = rows_ND.view(*ids_BF.shape, geometry.width)
                torch.bmm(rows_BFD, rows_BFD.mT, out=gram_BFF)
    # The lengths are divided out of the small products.
    return gram_CFF.mul_(scale_CF.unsqueeze(-1)).mul_(scale_CF.unsqueeze(-2))


def raw_gram_(geometry: TokenGeometry, ids_CF: Tensor, gram_CFF: Tensor, block: int) -> None:
    """⟨e_i − μ, e_j − μ⟩ = ⟨e_i, e_j⟩ − ⟨e_i, μ⟩ − ⟨e_j, μ⟩ + ‖μ‖², from the rows of a low-precision table as they are.

    Args:
        geometry: The token rows, with `along_mean_V`.
        ids_CF: Token ids.
        gram_CFF: (C, F, F), overwritten.
        block: Positions whose rows are gathered at a time.
    """
    assert geometry.along_mean_V is not None
    buffer_ND = geometry.table_VD.new_empty(block * ids_CF.shape[1], geometry.width)
    for ids_BF, gram_BFF in zip(ids_CF.split(block), gram_CFF.split(block), strict=True):
        rows_ND = torch.index_select(geometry.table_VD, 0, ids_BF.flatten(), out=buffer_ND[: ids_BF.numel()])
        gram_(rows_ND.view(*ids_BF.shape, geometry.width), out=gram_BFF)
    half_CF = geometry.along_mean_V[ids_CF] - geometry.mean_D.square().sum() / 2
    gram_CFF.sub_(half_CF.unsqueeze(-1)).sub_(half_CF.unsqueeze(-2))
