"""Two small Triton programs a position: what goes into its quadratic form, and what of it goes into the logits' gradient.

Each stands for some twenty operations on a handful of numbers. Importing this needs Triton.
Legend: K kept tokens, V vocabulary.
"""

# mypy: allow-untyped-defs
import triton
import triton.language as tl


@triton.jit
def frame_program(
    top_logits,
    places,
    best,
    labels,
    largest,
    norms,
    scale,
    ids,
    kept_ids,
    weights,
    shifts,
    probabilities,
    tails,
    kept,
    groups,
    keep,
    epsilon,
    width,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPED: tl.constexpr,
):
    """Ids, weights and background of the frame of the position `tl.program_id(0)`.

    Args:
        top_logits: (C, kept) float32, the largest logits of each row.
        places: (C, kept) int64, where they stand: among the candidates of `top_candidates`, or in the row.
        best: (C, kept) int64, the groups that the candidates come from; read with GROUPED.
        labels: (C,) int64.
        largest: (C,) float32, max z.
        norms: (C,) float32, Σ exp(z − max z).
        scale: (V,) float32, 0 where a token has no direction.
        ids: (C, 1 + kept) results, the label first.
        kept_ids: (C, kept) results, without it.
        weights: (C, 1 + kept) results, (1 − ε) q; a label that is among the kept tokens has its own at the first place.
        shifts: (C,) results, ((1 − ε) δ + ε)/d.
        probabilities: (C, kept) results, q.
        tails: (C,) results, δ.
        kept: Number of kept tokens.
        groups: Whole groups of neighbours in a row.
        keep: 1 − ε.
        epsilon: ε.
        width: d.
        K: `kept` rounded up to a power of two.
        GROUP: Neighbours in a group.
        GROUPED: Places are those of candidates.
    """
    position = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, K)
    present = place < kept
    label = tl.load(labels + position)
    token = tl.load(places + position * kept + place, mask=present, other=0)
    if GROUPED:
        beyond = token - kept * GROUP
        rank = tl.minimum(token // GROUP, kept - 1)
        group = tl.load(best + position * kept + rank, mask=present, other=0)
        token = tl.where(beyond < 0, group * GROUP + token % GROUP, groups * GROUP + beyond)
    logit = tl.load(top_logits + position * kept + place, mask=present, other=-float("inf"))
    q = tl.exp(logit - tl.load(largest + position)) / tl.load(norms + position)
    q = tl.where(present, q, 0.0)
    inside = tl.where(tl.load(scale + token, mask=present, other=0.0) > 0, q, 0.0)
    tail = 1 - tl.sum(inside, 0)
    # Not `maximum`, which may drop a NaN that a row of logits has brought.
    tail = tl.where(tail < 0, 0.0, tail)
    weight = keep * inside
    is_label = token == label
    frame = position * (kept + 1)
    tl.store(ids + frame, label)
    tl.store(ids + frame + 1 + place, token, mask=present)
    tl.store(kept_ids + position * kept + place, token, mask=present)
    tl.store(weights + frame, tl.sum(tl.where(is_label, weight, 0.0), 0))
    tl.store(weights + frame + 1 + place, tl.where(is_label, 0.0, weight), mask=present)
    tl.store(shifts + position, (keep * tail + epsilon) / width)
    tl.store(probabilities + position * kept + place, q, mask=present)
    tl.store(tails + position, tail)


@triton.jit
def factor_program(
    kept_ids,
    scale,
    probabilities,
    tails,
    form_values,
    form_gradients,
    form_traces,
    values,
    factors,
    kept_factors,
    kept,
    keep,
    epsilon,
    width,
    loss_weight,
    K: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """MCE of the position `tl.program_id(0)`, and what its logits' gradient multiplies probabilities with.

    With g = ∂MCE/∂q the factors are 1 + λ(g − ⟨q, g⟩): one for all tokens of the tail, and one for each kept token. A kept
    token without direction belongs to the background, as the tail does.

    Args:
        kept_ids: (C, kept) int64.
        scale: (V,) float32, 0 where a token has no direction.
        probabilities: (C, kept) float32, q.
        tails: (C,) float32, δ.
        form_values: (C,) float32, the quadratic form.
        form_gradients: (C, 1 + kept) float32, its derivative in the weights.
        form_traces: (C,) float32, d times its derivative in the background.
        values: (C,) results, the quadratic form and tr Q.
        factors: (C,) results, of the tail; written with GRADIENT.
        kept_factors: (C, kept) results; written with GRADIENT.
        kept: Number of kept tokens.
        keep: 1 − ε.
        epsilon: ε.
        width: d.
        loss_weight: λ.
        K: `kept` rounded up to a power of two.
        GRADIENT: Write the factors.
    """
    position = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, K)
    present = place < kept
    frame = position * (kept + 1)
    token = tl.load(kept_ids + position * kept + place, mask=present, other=0)
    directed = present & (tl.load(scale + token, mask=present, other=0.0) > 0)
    q = tl.load(probabilities + position * kept + place, mask=present, other=0.0)
    tail = tl.load(tails + position)
    inside = tl.sum(tl.where(directed, q, 0.0), 0)
    tl.store(values + position, tl.load(form_values + position) + keep * (inside + tail) + epsilon)
    if GRADIENT:
        of_tail = keep * (tl.load(form_traces + position) / width + 1)
        gradient = keep * (tl.load(form_gradients + frame + 1 + place, mask=present, other=0.0) + 1)
        beyond = tl.where(directed, gradient - of_tail, 0.0)
        mean = tl.sum(q * beyond, 0)
        tl.store(factors + position, 1 - loss_weight * mean)
        tl.store(kept_factors + position * kept + place, 1 + loss_weight * (beyond - mean), mask=present)
