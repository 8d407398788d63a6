"""−ê_yᵀ log(Q) ê_y and its gradient over the frame of each position, by two programs a position.

What `mce_llm.lm.token_kernel` does with a Lanczos recurrence and a small eigendecomposition of all positions, in two
launches of fixed shape: nothing but the Gram matrices reaches memory, and the host never waits. The logarithm of the
tridiagonal matrices comes from resolvents at fixed poles instead of eigenvectors.
Legend: C positions, F frame vectors, K = F − 1 of them beside the label, V vocabulary, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mce_llm.lm.config import MatrixLossConfig
from mce_llm.lm.geometry import TokenGeometry
from mce_llm.lm.kernels.launching import power_of_two, runs_on
from mce_llm.lm.token_form import TokenForm
from mce_llm.matrix.krylov import BREAKDOWN_IN_EPS, GRAM_EPS
from mce_llm.matrix.log_approximation import ApproximationError
from mce_llm.matrix.tridiagonal_poles import LogPoles, log_poles

MOST_KEPT = 128  # K × K numbers have to fit into registers,
MOST_STEPS = 16  # and Krylov vectors beside them
_GRAM_ELEMENTS = 2**26  # of Gram matrices at a time
_TABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALLEST_TILE = 16  # of products on tensor cores
# Eigenvalues of Q that rounding alone can make zero are no eigenvalues to take resolvents at.
_SMALLEST_FLOOR = torch.finfo(torch.float32).eps


def supports(config: MatrixLossConfig, geometry: TokenGeometry) -> bool:
    """Whether `fused_token_form` can take the place of the eigendecompositions, and as exactly.

    It cannot without Triton and a GPU, for float64 tables, for the full vocabulary or more than 128 kept tokens, for
    orders above 16, and for spectra of Q that are too wide for float32 resolvents at fixed poles (ε/d below 1.2e-7).
    Without normalised rows nobody knows how far the spectrum reaches.

    Args:
        config: `support`, `order`, `shrinkage` and `normalize` are read.
        geometry: Its table's dtype, width and device are read.
    """
    return (
        config.support is not None
        and config.support <= min(MOST_KEPT, geometry.table_VD.shape[0] - 1)
        and config.order <= MOST_STEPS
        and config.normalize
        and geometry.table_VD.dtype in _TABLE_DTYPES
        and runs_on(geometry.table_VD.device)
        and _poles(config.epsilon / geometry.width) is not None
    )


def fused_token_form(
    geometry: TokenGeometry,
    ids_CF: Tensor,
    weights_CF: Tensor,
    shift_C: Tensor,
    *,
    order: int,
    shrinkage_floor: float,
    gap: bool,
) -> TokenForm:
    """−ê_yᵀ log(Q) ê_y with Q = Σ_f w_f ê_f ê_fᵀ + shift · I, for every position of a chunk.

    For settings that `supports` accepts; frames of others are refused by the compiler, at best.

    Args:
        geometry: The token rows ê, constant.
        ids_CF: (C, F) int64, the label y first. A token may occur twice, with its weight at one place.
        weights_CF: (C, F) float32, w.
        shift_C: (C,) float32, at least `shrinkage_floor`.
        order: Lanczos steps, 1 to 16.
        shrinkage_floor: ε/d, the smallest eigenvalue of Q.
        gap: Report the value at the order before, too.

    Returns:
        Values, gradients and traces.

    Raises:
        ApproximationError: No poles for so small a floor.
    """
    from mce_llm.lm.kernels.token_form_program import form_program

    poles = _poles(shrinkage_floor)
    if poles is None:
        raise ApproximationError(
            f"the smallest eigenvalue is {shrinkage_floor:.1e}, the limit {_SMALLEST_FLOOR:.1e}: ask `supports` first"
        )
    positions, size = ids_CF.shape
    value_C, trace_C = (weights_CF.new_empty(positions) for _ in range(2))
    previous_C = weights_CF.new_empty(positions) if gap and order > 1 else None
    gradient_CF = torch.empty_like(weights_CF, memory_format=torch.contiguous_format)
    tile = max(SMALLEST_TILE, power_of_two(size - 1))
    poles_3P = poles.on(weights_CF, power_of_two(len(poles.shifts)))
    with torch.cuda.device_of(ids_CF):
        for rows in _blocks(positions, tile):
            products = _frame_products(geometry, ids_CF[rows].contiguous(), tile)
            form_program[(len(products[0]),)](
                *products,
                weights_CF[rows].contiguous(),
                shift_C[rows].contiguous(),
                poles_3P,
                value_C[rows],
                value_C if previous_C is None else previous_C[rows],
                gradient_CF[rows],
                trace_C[rows],
                size - 1,
                poles.constant,
                shrinkage_floor,
                P=poles_3P.shape[1],
                GAP=previous_C is not None,
                **form_settings(tile, order),
            )
    return TokenForm(value_C, gradient_CF, trace_C, previous_C)


def _blocks(positions: int, tile: int) -> Iterator[slice]:
    """Runs of positions, so that Gram matrices of a chunk over a small vocabulary are not larger than its logits."""
    block = _GRAM_ELEMENTS // tile**2
    for start in range(0, positions, block):
        yield slice(start, min(start + block, positions))


def _frame_products(geometry: TokenGeometry, ids_BF: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of each frame: of the rows beside the label, of the label with them, of the label with itself."""
    from mce_llm.lm.kernels.token_form_program import gram_program

    positions, size = ids_BF.shape
    gram_BKK = geometry.mean_D.new_empty(positions, tile, tile)
    label_BK = geometry.mean_D.new_empty(positions, tile)
    label2_B = geometry.mean_D.new_empty(positions)
    gram_program[(positions,)](
        geometry.table_VD,
        geometry.mean_D,
        geometry.scale_V,
        ids_BF,
        gram_BKK,
        label_BK,
        label2_B,
        *geometry.table_VD.stride(),
        geometry.width,
        size - 1,
        lift(geometry.width),
        **gram_settings(tile),
    )
    return gram_BKK, label_BK, label2_B


def lift(width: int) -> float:
    """The length of the rows whose products are formed, a power of two.

    Their numbers are 2⁸ in the mean and at most 2¹⁵: within float16 (65,504), and as far above its smallest normal
    number (2⁻¹⁴) as it takes for what rounding leaves of them, 2⁻¹¹ of each, to have all its digits too.

    Args:
        width: D.
    """
    return 2.0 ** min(15, 8 + width.bit_length() // 2)


def gram_settings(tile: int) -> dict[str, int]:
    """Compile-time settings of `gram_program`: as much as registers hold without spilling.

    Args:
        tile: K, the rows beside the label rounded up to a power of two.
    """
    small = tile <= 64
    return {
        "K": tile,
        "BLOCK": 32 if small else 16,
        "SLAB": 512,
        "STAGES": 3,
        "num_warps": 4 if small else 8,
    }


def form_settings(tile: int, order: int) -> dict[str, int | float]:
    """Compile-time settings of `form_program`, but for the poles and what is written.

    Args:
        tile: K, the rows beside the label rounded up to a power of two.
        order: M.
    """
    return {
        "K": tile,
        "ORDER": order,
        "STEPS": power_of_two(order),
        "BREAKDOWN2": (BREAKDOWN_IN_EPS * torch.finfo(torch.float32).eps) ** 2,
        "SINGULAR": GRAM_EPS * torch.finfo(torch.float32).eps,
        "num_warps": 2 if tile <= 64 else 4,
    }


def _poles(floor: float) -> LogPoles | None:
    """The poles for eigenvalues from `floor` to 1; None where float32 has no use for them.

    Rows of length one and a trace of one leave no eigenvalue above 1.
    """
    return log_poles(floor, 1.0) if floor >= _SMALLEST_FLOOR else None
