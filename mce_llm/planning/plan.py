"""The memory plan: every term for every engine, what fits, the largest micro-batch, and what to change if nothing does.

The peak of a device is what is always there and the largest of three moments: the end of the forward pass, where the loss
is formed; the backward pass, where a layer is at work; and the optimizer's step, when activations are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mce_llm.planning.activations import eight_bit_inputs, inner_bytes, layer_activations
from mce_llm.planning.engines import (
    ENGINES,
    Engine,
    Term,
    buffer_terms,
    engines_for,
    state_terms,
)
from mce_llm.planning.loss import loss_allocations
from mce_llm.planning.outcome import TIGHT, EnginePlan, MemoryPlan, Remedy
from mce_llm.planning.shapes import GIB, ModelShape, PlanningError, TrainingShape, with_lora
from mce_llm.running.messages import raise_all

# What no tensor shows: the CUDA context with its kernels, cuBLAS workspaces, NCCL's channels; and what the caching
# allocator loses between blocks. Estimates, on the safe side.
CONTEXT = 1.0 * GIB
COMMUNICATION = 0.5 * GIB
FRAGMENTATION = 0.04
_LORA_RANK = 16
_MOST_ROWS = 1024


def plan_memory(
    model: ModelShape,
    training: TrainingShape,
    *,
    devices: int,
    capacity: float | None,
    engine: str | None = None,
    host_capacity: float | None = None,
) -> MemoryPlan:
    """Work out the memory of a run.

    Args:
        model: The model.
        training: The run.
        devices: GPUs over all machines.
        capacity: Bytes of each; None to add up without judging.
        engine: One engine alone; all of them by default.
        host_capacity: Bytes of host memory over all machines; None where it is not known.

    Returns:
        The plan.

    Raises:
        PlanningError: An engine or optimizer that is not known, or numbers that make no sense.
    """
    problems = []
    if devices < 1:
        problems.append(f"the number of GPUs must be at least 1, got {devices}")
    if capacity is not None and not capacity > 0:
        problems.append(f"the memory of a GPU must be positive, got {capacity / GIB:g} GiB")
    if host_capacity is not None and not host_capacity > 0:
        problems.append(f"the memory of the host must be positive, got {host_capacity / GIB:g} GiB")
    raise_all(problems, PlanningError)
    chosen = engines_for(devices, engine)
    plans = tuple(_engine_plan(item, model, training, devices, capacity, host_capacity) for item in chosen)
    recommended = _recommended(plans)
    best = next((plan for plan in plans if plan.engine == recommended), None)
    enough = best is not None and best.verdict == "fits" and not ENGINES[best.engine].offloads
    remedies = (
        ()
        if enough or capacity is None
        else _remedies(model, training, devices, capacity, chosen, host_capacity)
    )
    return MemoryPlan(model, training, devices, capacity, plans, recommended, remedies)


def _recommended(plans: Sequence[EnginePlan]) -> str | None:
    """The first that fits; then the first that is tight; offload, which is several times slower, after both."""
    for offloads in (False, True):
        for verdict in ("fits", "tight"):
            for plan in plans:
                if ENGINES[plan.engine].offloads == offloads and plan.verdict == verdict:
                    return plan.engine
    return None


def _engine_plan(
    engine: Engine,
    model: ModelShape,
    training: TrainingShape,
    devices: int,
    capacity: float | None,
    host_capacity: float | None,
) -> EnginePlan:
    stock = replace(training, loss=replace(training.loss, stock=True))
    plan = EnginePlan(
        engine.name,
        tuple(engine_terms(engine, model, training, devices)),
        capacity,
        engine.refusal(training),
        host_capacity=host_capacity,
        stock_peak=EnginePlan(engine.name, tuple(engine_terms(engine, model, stock, devices)), None).peak,
    )
    if capacity is None:
        return plan
    return replace(
        plan,
        largest_micro_batch=_largest_micro_batch(engine, model, training, devices, capacity, host_capacity),
    )


def engine_terms(engine: Engine, model: ModelShape, training: TrainingShape, devices: int) -> list[Term]:
    """Every line of the arithmetic of one device.

    Args:
        engine: The engine.
        model: The model.
        training: The run.
        devices: GPUs.
    """
    terms = [
        *state_terms(engine, model, training, devices),
        *buffer_terms(engine, model, training, devices),
        *_activation_terms(engine, model, training),
    ]
    terms = [term for term in terms if term.bytes]
    peak = EnginePlan(engine.name, tuple(terms), None).peak
    fixed = CONTEXT + (COMMUNICATION if devices > 1 else 0)
    text = f"{fixed / GIB:.1f} GiB for the CUDA context{' and NCCL' if devices > 1 else ''} + {FRAGMENTATION:.0%} of {peak / GIB:.1f} GiB"
    return [*terms, Term("reserve", fixed + FRAGMENTATION * peak, text)]


def _activation_terms(engine: Engine, model: ModelShape, training: TrainingShape) -> list[Term]:
    widths = engine.precision(training)
    tokens, layer = training.tokens, model.layer
    one = layer_activations(layer, training, widths)
    at = f"{training.micro_batch} × {training.length:,} tokens"
    terms: list[Term] = []

    if training.checkpointing:
        recomputed = -(-model.num_layers // training.checkpointed_every)
        kept = float(recomputed * tokens * model.hidden_size * widths.stream)
        text = (
            f"{recomputed} layers × {at} × d {model.hidden_size:,} × {widths.stream} B, inputs of the layers"
        )
        if others := model.num_layers - recomputed:
            kept += others * tokens * one.total
            text += f" + {others} layers × {at} × {one.total:,.0f} B, not recomputed"
        if training.quantization == "8bit" and not training.reentrant:
            inputs = eight_bit_inputs(layer, widths)
            kept += recomputed * tokens * inputs
            text += f" + {recomputed} layers × {at} × {inputs:,.0f} B, inputs of 8-bit products (use_reentrant: false)"
    else:
        kept = model.num_layers * tokens * one.total
        text = f"{model.num_layers} layers × {at} × {one.total:,.0f} B ({one.text})"
    for phase in ("forward", "backward"):
        terms.append(Term("activations", kept, text, phase))
    if training.checkpointing:
        text = f"{at} × {one.total:,.0f} B ({one.text})"
        terms.append(Term("recomputed layer", tokens * one.total, text, "backward"))

    end = tokens * model.hidden_size * (4 + 2 * widths.stream)
    text = f"{at} × d {model.hidden_size:,} × {4 + 2 * widths.stream} B, last normalisation and its output"
    terms.append(Term("hidden states", end, text, "forward"))

    casts = _autocast_copies(model, widths.product) if widths.casts else 0
    if casts:
        text = f"{casts // widths.product:,} × {widths.product} B, weights cast by autocast"
        terms.append(Term("cast weights", casts, text, "forward"))
        at_work = casts // model.num_layers if training.checkpointing else casts
        terms.append(
            Term("cast weights", at_work, text + (" ÷ layers" if training.checkpointing else ""), "backward")
        )

    wide, inner = 3 if layer.gated else 2, inner_bytes(layer, widths)
    branches = max(layer.experts, 1)
    work = tokens * (wide * inner * layer.inner_width * branches + 4 * widths.stream * model.hidden_size)
    text = f"{at} × ({wide} × {layer.inner_width:,} × {inner} B + 4 × d × {widths.stream} B), gradients inside a layer"
    terms.append(Term("layer at work", work, text, "backward"))
    if training.quantization:
        size = model.largest_matrix * widths.product
        terms.append(
            Term("dequantised matrix", size, f"{model.largest_matrix:,} × {widths.product} B", "backward")
        )
    if training.padded and training.attention != "flash":
        mask = training.micro_batch * training.length**2 * widths.product
        terms.append(
            Term(
                "attention mask", mask, f"{training.micro_batch} × {training.length:,}² × {widths.product} B"
            )
        )
    for name, allocation in loss_allocations(model, training, widths).items():
        terms.append(Term(f"loss: {name}", allocation.bytes, allocation.formula, "forward"))
    return terms


def _autocast_copies(model: ModelShape, product: int) -> int:
    """Bytes of the copies that autocast keeps of trained float32 matrices until the forward pass is over."""
    chosen = [g for g in model.groups if g.trained and g.role in ("linear", "adapter")]
    return product * sum(group.elements for group in chosen)


def _largest_micro_batch(
    engine: Engine,
    model: ModelShape,
    training: TrainingShape,
    devices: int,
    capacity: float,
    host_capacity: float | None,
) -> int:
    if engine.refusal(training):
        return 0

    def fits(rows: int, room: float) -> bool:
        terms = engine_terms(engine, model, replace(training, micro_batch=rows), devices)
        plan = EnginePlan(engine.name, tuple(terms), capacity)
        return plan.peak <= room and (host_capacity is None or plan.host <= host_capacity)

    comfortable = (1 - TIGHT) * capacity
    if not fits(1, comfortable):
        return int(fits(1, capacity))
    low, high = 1, _MOST_ROWS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle, comfortable) else (low, middle)
    return low


def _remedies(
    model: ModelShape,
    training: TrainingShape,
    devices: int,
    capacity: float,
    engines: Sequence[Engine],
    host_capacity: float | None,
) -> tuple[Remedy, ...]:
    """Changes in the order of what they cost; those that change the outcome least are kept for the ones after them."""
    on_device = [engine for engine in engines if not engine.offloads]
    found: list[Remedy] = []

    def consider(
        change: str,
        cost: str,
        model: ModelShape,
        training: TrainingShape,
        devices: int = devices,
        engines: Sequence[Engine] = on_device,
    ) -> bool:
        plans = [
            EnginePlan(
                engine.name,
                tuple(engine_terms(engine, model, training, devices)),
                capacity,
                host_capacity=host_capacity,
            )
            for engine in engines
            if engine.refusal(training) is None
        ]
        if not plans:
            return False
        best = next(
            (plan for plan in plans if plan.verdict == "fits"), min(plans, key=lambda plan: plan.peak)
        )
        found.append(Remedy(change, cost, best.engine, best.peak, bool(best.fits), best.verdict == "tight"))
        return best.verdict == "fits"

    small = training
    if not small.checkpointing:
        small = replace(small, checkpointing=True)
        consider("gradient_checkpointing: true", "about a third more time", model, small)
    if small.micro_batch > 1:
        small = replace(small, micro_batch=1)
        consider("per_device_train_batch_size: 1", "lower throughput", model, small)
    if small.optim == "adamw_torch":
        small = replace(small, optim="adamw_torch_fused")
        consider("optim: adamw_torch_fused", "nothing on a GPU", model, small)
    quantized = replace(small, dtype="bfloat16", quantization="4bit")
    if training.adapter_rank == 0:
        lora = with_lora(model, _LORA_RANK)
        adapters = replace(small, adapter_rank=_LORA_RANK, dtype="bfloat16")
        consider(f"lora_r: {_LORA_RANK}, dtype: bfloat16", "trains adapters alone", lora, adapters)
        quantized = replace(adapters, quantization="4bit")
        consider("… and quantization: 4bit", "frozen weights are rounded", lora, quantized)
    elif training.quantization is None:
        consider("quantization: 4bit", "frozen weights are rounded", model, quantized)
    if training.quantization is None:
        offload = [engine for engine in ENGINES.values() if engine.offloads]
        consider("engine zero3_offload", "several times slower, host memory", model, small, engines=offload)
    for more in (devices * 2**power for power in range(1, 11)):
        sharded = [engine for engine in engines_for(more) if not engine.offloads]
        if consider(f"{more} GPUs", "more GPUs", model, small, more, sharded):
            break
        found.pop()
    return tuple(found)
