"""The two Triton programs of one position of the `token` loss: its Gram matrix, then value and gradient from it.

They are two because they want different things: the first tensor cores and memory, the second a few numbers in many
registers for a long time. In one program they spilled registers to memory, where a Gram matrix on its way is 3 % of
what is gathered. The recurrence is that of `mce_llm.matrix.krylov`, break-downs included. Importing this needs Triton.

Frame: the label's row beside K others, so that K kept tokens fill tiles of K. A variable that ends in `_0` is the
label's entry of the frame vector of the same name. Legend: K rows beside the label, M Krylov order, P poles, D width.
"""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

_LARGEST = tl.constexpr(3.4028234e38)  # of the finite float32 numbers
_TINY = tl.constexpr(1.1754944e-38)  # the smallest normal one


@triton.jit
def _times_gram(gram, label, label2, rows, rows_0):
    """G c for coordinates c over the frame."""
    return (
        tl.sum(gram * rows[None, :], 1) + label * rows_0,
        tl.sum(label * rows, 0) + label2 * rows_0,
    )


@triton.jit
def _entry(vector, places, place):
    """One number of a vector."""
    return tl.sum(tl.where(places == place, vector, 0.0), 0)


@triton.jit
def _log_of_first(
    alphas, betas2, step, poles, weights, constant, floor, ORDER: tl.constexpr, STEPS: tl.constexpr
):
    """e₁ᵀ log(T) e₁ of the leading ORDER × ORDER block of T, and the pivots of T + s for every pole −s, (M, P).

    Pivots are formed from the last to the first; without their s, none of them is below the spectrum of T, which
    rounding alone can push below `floor`. The first one is 1/e₁ᵀ (T + s)⁻¹ e₁.
    """
    pivots = tl.full((STEPS, poles.shape[0]), 1.0, tl.float32)
    rest = tl.full((poles.shape[0],), 1.0, tl.float32)
    for i in range(ORDER):
        j = ORDER - 1 - i
        coupling2 = tl.where(i == 0, 0.0, _entry(betas2, step, j))
        rest = tl.maximum(_entry(alphas, step, j) - coupling2 / (rest + poles), floor)
        pivots = tl.where(step[:, None] == j, (rest + poles)[None, :], pivots)
    # Σ w (1/(1 + s) − 1/(rest + s)), written so that nothing cancels where T is near 1.
    log = constant + tl.sum(weights / (1 + poles) * ((rest - 1) / (rest + poles)), 0)
    return log, pivots


@triton.jit
def gram_program(
    table,
    mean,
    scale,
    ids,
    grams,
    labels,
    labels2,
    row_stride,
    column_stride,
    width,
    kept,
    lift,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    SLAB: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Inner products of the frame of the position `tl.program_id(0)`, to about 22 bits.

    A row x of length one, in numbers that suit float16, is the sum of two float16 rows h + l. Then XXᵀ = HHᵀ + HLᵀ +
    (HLᵀ)ᵀ but for LLᵀ, which is below the last bit: two products at the full speed of tensor cores, where one of
    float32 numbers would take three at half that speed.

    Args:
        table: (V, D) raw rows, with their strides in elements.
        mean: (D,) float32.
        scale: (V,) float32.
        ids: (C, 1 + kept) int64, the label first.
        grams: (C, K, K) results: of the rows beside the label.
        labels: (C, K) results: of the label with them.
        labels2: (C,) results: of the label with itself.
        row_stride: From row to row of the table.
        column_stride: From column to column.
        width: D.
        kept: Rows beside the label, at most K; what stands beyond them is zero.
        lift: Length that rows are given, a power of two. It keeps their numbers and what rounding leaves of them in
            the range of float16.
        K: `kept` rounded up to a power of two, at least 16.
        BLOCK: Columns of the rows that are in registers at a time.
        SLAB: Columns after which a partial sum is added to the Gram matrix, a multiple of BLOCK.
        STAGES: Blocks of columns that are on their way at a time.
    """
    position = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, K)
    present = place < kept
    frame = position * (kept + 1)
    # int64, as everything that is multiplied with it: V·D passes 2³¹ (524,288 rows of 4,096).
    token_0 = tl.load(ids + frame)
    # Places beyond the frame repeat the label, whose row is at hand, with scale 0.
    token = tl.load(ids + frame + 1 + place, mask=present, other=0)
    token = tl.where(present, token, token_0)
    row = table + token[:, None] * row_stride
    row_0 = table + token_0 * row_stride

    scale_0 = tl.load(scale + token_0) * lift
    scales = tl.where(present, tl.load(scale + token), 0.0) * lift

    gram = tl.zeros((K, K), tl.float32)
    mixed = tl.zeros((K, K), tl.float32)
    label = tl.zeros((K,), tl.float32)
    label2 = 0.0
    # Tensor cores cut sums off instead of rounding them; so large sums are kept short, and added up outside.
    partial = tl.zeros((K, K), tl.float32)
    for start in tl.range(0, width, BLOCK, num_stages=STAGES):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        offset = column.to(tl.int64) * column_stride
        mu = tl.load(mean + column, mask=inside, other=0.0)
        # Centred before they are multiplied: with the mean taken out of the products, a large one would cancel away
        # the digits that matter.
        x = tl.load(row + offset[None, :], mask=inside[None, :], other=0.0).to(tl.float32) - mu[None, :]
        x = x * scales[:, None]
        x_0 = tl.load(row_0 + offset, mask=inside, other=0.0).to(tl.float32) - mu
        x_0 = x_0 * scale_0
        label += tl.sum(x * x_0[None, :], 1)
        label2 += tl.sum(x_0 * x_0, 0)
        high = x.to(tl.float16)
        low = (x - high.to(tl.float32)).to(tl.float16)
        partial = tl.dot(high, tl.trans(high), partial)
        mixed = tl.dot(high, tl.trans(low), mixed)
        if (start + BLOCK) % SLAB == 0:
            gram += partial
            partial = tl.zeros((K, K), tl.float32)
    gram += partial
    gram = (gram + (mixed + tl.trans(mixed))) / (lift * lift)
    tl.store(grams + position * (K * K) + place[:, None] * K + place[None, :], gram)
    tl.store(labels + position * K + place, label / (lift * lift))
    tl.store(labels2 + position, label2 / (lift * lift))


@triton.jit
def form_program(
    grams,
    labels,
    labels2,
    weights,
    shifts,
    poles,
    values,
    previous_values,
    gradients,
    traces,
    kept,
    constant,
    floor,
    K: tl.constexpr,
    ORDER: tl.constexpr,
    STEPS: tl.constexpr,
    P: tl.constexpr,
    BREAKDOWN2: tl.constexpr,
    SINGULAR: tl.constexpr,
    GAP: tl.constexpr,
):
    """−ê_yᵀ log(Q) ê_y with its gradient for the position `tl.program_id(0)`.

    Args:
        grams: (C, K, K) from `gram_program`.
        labels: (C, K) from it.
        labels2: (C,) from it.
        weights: (C, 1 + kept) float32, that of the label first.
        shifts: (C,) float32, what Q has beside the frame.
        poles: (3, P) float32 of `LogPoles`: s of the poles −s in the first row, their residues in the last.
        values: (C,) results.
        previous_values: (C,) results at order M − 1, written with GAP.
        gradients: (C, 1 + kept) results.
        traces: (C,) results.
        kept: Rows beside the label, at most K.
        constant: The approximation of log 1.
        floor: Smallest eigenvalue of Q.
        K: `kept` rounded up to a power of two, at least 16.
        ORDER: M.
        STEPS: M rounded up to a power of two.
        P: Number of poles, a power of two.
        BREAKDOWN2: (β/‖Q v‖)² up to which β counts as zero.
        SINGULAR: β² over the square sum of the coordinates, up to which β counts as zero.
        GAP: Write `previous_values`.
    """
    position = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, K)
    step = tl.arange(0, STEPS)
    present = place < kept
    frame = position * (kept + 1)
    gram = tl.load(grams + position * (K * K) + place[:, None] * K + place[None, :])
    label = tl.load(labels + position * K + place)
    label2 = tl.load(labels2 + position)
    weight_0 = tl.load(weights + frame)
    weight = tl.load(weights + frame + 1 + place, mask=present, other=0.0)
    shift = tl.load(shifts + position)
    norm2 = label2
    broken = ~(tl.abs(norm2) <= _LARGEST)
    alive = (norm2 >= _TINY) & (~broken)
    length = tl.sqrt(tl.where(alive, norm2, 1.0))
    v_0 = tl.where(alive, 1.0 / length, 0.0)
    v = tl.zeros((K,), tl.float32)
    u_0 = tl.where(alive, label2 / length, 0.0)
    u = tl.where(alive, label / length, 0.0)
    basis = tl.zeros((STEPS, K), tl.float32)
    basis_0 = tl.zeros((STEPS,), tl.float32)
    duals = tl.zeros((STEPS, K), tl.float32)
    duals_0 = tl.zeros((STEPS,), tl.float32)
    alphas = tl.full((STEPS,), 1.0, tl.float32)
    betas2 = tl.zeros((STEPS,), tl.float32)
    for j in range(ORDER):
        here = step == j
        basis = tl.where(here[:, None], v[None, :], basis)
        basis_0 = tl.where(here, v_0, basis_0)
        duals = tl.where(here[:, None], u[None, :], duals)
        duals_0 = tl.where(here, u_0, duals_0)
        image = shift * v + weight * u
        image_0 = shift * v_0 + weight_0 * u_0
        dual, dual_0 = _times_gram(gram, label, label2, image, image_0)
        size2 = tl.sum(image * dual, 0) + image_0 * dual_0
        broken = broken | (alive & (~(tl.abs(size2) <= _LARGEST)))
        alive = alive & (~broken)
        image = tl.where(alive, image, 0.0)
        image_0 = tl.where(alive, image_0, 0.0)
        dual = tl.where(alive, dual, 0.0)
        dual_0 = tl.where(alive, dual_0, 0.0)
        along = 0.0
        for _ in tl.static_range(2):
            # Rows of the basis that are still to come are zero.
            coefficients = tl.sum(basis * dual[None, :], 1) + basis_0 * dual_0
            image -= tl.sum(basis * coefficients[:, None], 0)
            image_0 -= tl.sum(basis_0 * coefficients, 0)
            dual, dual_0 = _times_gram(gram, label, label2, image, image_0)
            along += tl.sum(tl.where(here, coefficients, 0.0), 0)
        frozen = tl.where(j == 0, 1.0, _entry(alphas, step, 0))
        alphas = tl.where(here, tl.where(alive, along, frozen), alphas)
        rest2 = tl.sum(image * dual, 0) + image_0 * dual_0
        # Where the frame has more vectors than dimensions, a vector of rounding alone may pass as one of length one,
        # by coordinates so large that errors of the Gram matrix outweigh it. Eigenvectors would give it no weight
        # in the end; pivots have no such insight.
        coordinates2 = tl.sum(image * image, 0) + image_0 * image_0
        alive = alive & (rest2 > BREAKDOWN2 * size2) & (rest2 > SINGULAR * coordinates2)
        betas2 = tl.where(here, tl.where(alive, rest2, 0.0), betas2)
        length = tl.sqrt(tl.where(alive, rest2, 1.0))
        v = tl.where(alive, image / length, 0.0)
        v_0 = tl.where(alive, image_0 / length, 0.0)
        u = tl.where(alive, dual / length, 0.0)
        u_0 = tl.where(alive, dual_0 / length, 0.0)
    norm2 = tl.where(broken, float("nan"), tl.maximum(norm2, 0.0))

    pole = tl.load(poles + tl.arange(0, P))
    pole_weight = tl.load(poles + 2 * P + tl.arange(0, P))
    log, pivots = _log_of_first(alphas, betas2, step, pole, pole_weight, constant, floor, ORDER, STEPS)
    tl.store(values + position, -norm2 * log)
    if GAP:
        log, _pivots = _log_of_first(
            alphas, betas2, step, pole, pole_weight, constant, floor, ORDER - 1, STEPS
        )
        tl.store(previous_values + position, -norm2 * log)

    # ∂/∂T = −‖x‖² Σ_p w_p r_p r_pᵀ with r_p = (T + s_p)⁻¹ e₁. All terms have one sign, and none cancels another.
    resolvent = tl.full((P,), 0.0, tl.float32)
    first = tl.sum(tl.where(step[:, None] == 0, pivots, 0.0), 0)
    # ‖r‖² ≤ e₁ᵀ (T + s)⁻¹ e₁/(floor + s); what is beyond it comes of vectors that should not be there.
    longest2 = 1.001 / (first * (floor + pole))
    length2 = tl.zeros((P,), tl.float32)
    product = tl.zeros((P, K), tl.float32)
    product_0 = tl.zeros((P,), tl.float32)
    for j in range(ORDER):
        pivot = tl.sum(tl.where(step[:, None] == j, pivots, 0.0), 0)
        coupling = tl.sqrt(_entry(betas2, step, j - 1))
        resolvent = tl.where(j == 0, 1.0, -coupling * resolvent) / pivot
        resolvent = tl.where((j == 0) | (length2 + resolvent * resolvent <= longest2), resolvent, 0.0)
        length2 += resolvent * resolvent
        u = tl.sum(tl.where(step[:, None] == j, duals, 0.0), 0)
        product += resolvent[:, None] * u[None, :]
        product_0 += resolvent * _entry(duals_0, step, j)
    tl.store(traces + position, -norm2 * tl.sum(pole_weight * length2, 0))
    tl.store(gradients + frame, -norm2 * tl.sum(pole_weight * product_0 * product_0, 0))
    gradient = -norm2 * tl.sum(pole_weight[:, None] * product * product, 0)
    tl.store(gradients + frame + 1 + place, gradient, mask=present)
