"""Triton programs over one row of logits: what softmax needs to know of it, and gradients.

Importing this needs Triton.
"""

# mypy: allow-untyped-defs
import triton
import triton.language as tl


@triton.jit
def softmax_program(
    logits,
    labels,
    cross_entropies,
    largest,
    norms,
    maxima,
    row_stride,
    size,
    groups,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    MAXIMA: tl.constexpr,
):
    """−log q_y, max z and Σ exp(z − max z) of the row `tl.program_id(0)`.

    Args:
        logits: (C, V) float32, z; consecutive in a row.
        labels: (C,) int64, y.
        cross_entropies: (C,) results.
        largest: (C,) results.
        norms: (C,) results.
        maxima: (C, groups) results, written with MAXIMA.
        row_stride: From row to row of the logits.
        size: V.
        groups: Number of whole groups of GROUP neighbours in a row.
        BLOCK: Columns at a time, a multiple of GROUP.
        GROUP: Neighbours whose maximum is kept.
        MAXIMA: Write `maxima`.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    label = tl.load(labels + row)
    target = tl.load(logits + label).to(tl.float32)
    top = -float("inf")
    base = 0.0
    norm = 0.0
    for first in range(0, size, BLOCK):
        column = first + tl.arange(0, BLOCK)
        z = tl.load(logits + column, mask=column < size, other=-float("inf"))
        if MAXIMA:
            best = tl.max(tl.reshape(z, (BLOCK // GROUP, GROUP)), 1)
            group = first // GROUP + tl.arange(0, BLOCK // GROUP)
            tl.store(maxima + row * groups + group, best, mask=group < groups)
            higher = tl.maximum(top, tl.max(best, 0))
        else:
            higher = tl.maximum(top, tl.max(z, 0))
        # A row may begin with nothing but −inf, from which nothing can be subtracted.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        norm = norm * tl.exp(top - base) + tl.sum(tl.exp(z - base), 0)
        top = higher
    tl.store(cross_entropies + row, tl.log(norm) + (top - target))
    tl.store(largest + row, top)
    tl.store(norms + row, norm)


@triton.jit
def gradient_program(
    logits,
    labels,
    largest,
    norms,
    factors,
    kept_ids,
    kept_factors,
    gradients,
    row_stride,
    gradient_stride,
    size,
    kept,
    scale,
    softcap,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Q ⊙ f − (1 at the label) of BLOCK columns of a row, through scale and softcap.

    Args:
        logits: (C, V) float32, z; consecutive in a row.
        labels: (C,) int64.
        largest: (C,) float32, max z.
        norms: (C,) float32, Σ exp(z − max z).
        factors: (C,) float32, f of the tokens that are not kept.
        kept_ids: (C, kept) int64, none of them twice in a row.
        kept_factors: (C, kept) float32, f of the kept tokens.
        gradients: (C, V) results in their own dtype; they may stand in the place of the logits.
        row_stride: From row to row of the logits.
        gradient_stride: From row to row of the results.
        size: V.
        kept: Number of kept tokens.
        scale: Factor that made z from the products with the head.
        softcap: c of c·tanh(z/c), applied after it; without CAPPED it is not read.
        BLOCK: Columns of one program.
        K: `kept` rounded up to a power of two; 0 where no token is kept.
        CAPPED: There is a softcap.
    """
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    logits += row * row_stride
    gradients += row * gradient_stride
    label = tl.load(labels + row)
    top = tl.load(largest + row)
    norm = tl.load(norms + row)
    factor = tl.load(factors + row)
    column = first + tl.arange(0, BLOCK)
    z = tl.load(logits + column, mask=column < size, other=0.0)
    gradient = tl.exp(z - top) / norm * factor - tl.where(column == label, 1.0, 0.0)
    if CAPPED:
        gradient = gradient * (1 - (z / softcap) * (z / softcap))
    if K > 0:
        place = tl.arange(0, K)
        token = tl.load(kept_ids + row * kept + place, mask=place < kept, other=-1)
        here = (token >= first) & (token < first + BLOCK)
        kept_z = tl.load(logits + token, mask=here, other=0.0)
        kept_factor = tl.load(kept_factors + row * kept + place, mask=here, other=0.0)
        kept_gradient = tl.exp(kept_z - top) / norm * kept_factor - tl.where(token == label, 1.0, 0.0)
        if CAPPED:
            kept_gradient = kept_gradient * (1 - (kept_z / softcap) * (kept_z / softcap))
        # Every thread has read its logits before another writes over them.
        tl.debug_barrier()
        tl.store(gradients + column, (gradient * scale).to(gradients.dtype.element_ty), mask=column < size)
        # And the kept tokens are written after the others.
        tl.debug_barrier()
        tl.store(gradients + token, (kept_gradient * scale).to(gradients.dtype.element_ty), mask=here)
    else:
        tl.store(gradients + column, (gradient * scale).to(gradients.dtype.element_ty), mask=column < size)
