"""The memory plan: every term for every engine, what fits, the largest micro-batch, and what to change if nothing does.

The peak of a device is what is always there and the largest of three moments: the end of the forward pass, where the loss
is formed; the backward pass, where a layer is at work; and the optimizer's step, when activations are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mce_llm.planning.activations import layer_activations
from mce_llm.planning.engines import (
    ENGINES,
    Engine,
    Phase,
    Term,
    buffer_terms,
    engines_for,
    state_terms,
)
from mce_llm.planning.loss import loss_allocations
from mce_llm.planning.shapes import GIB, ModelShape, PlanningError, TrainingShape, with_lora
from mce_llm.running.messages import raise_all

# What no tensor shows: the CUDA context with its kernels, cuBLAS workspaces, NCCL's channels; and what the caching
# allocator loses between blocks. Estimates, on the safe side.
CONTEXT = 1.0 * GIB
COMMUNICATION = 0.5 * GIB
FRAGMENTATION = 0.04
_MOMENTS: tuple[Phase, ...] = ("forward", "backward", "step")
_LORA_RANK = 16
_MOST_ROWS = 1024


@dataclass(frozen=True)
class EnginePlan:
    """The memory of one device under one engine.

    Attributes:
        engine: Its name.
        terms: Every line of the arithmetic.
        capacity: Bytes of a device; None where it is not known.
        refusal: Why this run cannot be launched with it, or None.
        largest_micro_batch: Rows that fit; 0 where not even one does, None without a capacity.
    """

    engine: str
    terms: tuple[Term, ...]
    capacity: float | None
    refusal: str | None = None
    largest_micro_batch: int | None = None

    def sum_of(self, phase: Phase) -> float:
        """Bytes of the terms of one phase."""
        return sum(term.bytes for term in self.terms if term.phase == phase)

    @property
    def moment(self) -> Phase:
        """When the peak is."""
        return max(_MOMENTS, key=self.sum_of)

    @property
    def reserve(self) -> float:
        """Bytes for what no tensor shows."""
        return sum(term.bytes for term in self.terms if term.name == "reserve")

    @cached_property
    def peak(self) -> float:
        """Bytes of one device at the worst moment, the reserve included."""
        return self.sum_of("always") + self.sum_of(self.moment)

    @property
    def host(self) -> float:
        """Bytes of host memory beside that of the processes themselves, over all machines."""
        return self.sum_of("host")

    @property
    def fits(self) -> bool | None:
        """Whether the peak fits; None without a capacity."""
        return None if self.capacity is None else self.refusal is None and self.peak <= self.capacity


@dataclass(frozen=True)
class Remedy:
    """A change that would make the run smaller.

    Attributes:
        change: What to set.
        cost: What that costs.
        engine: The engine that is best with it.
        peak: Bytes of a device then.
        fits: Whether that is enough.
    """

    change: str
    cost: str
    engine: str
    peak: float
    fits: bool


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs.

    Attributes:
        model: The model.
        training: The run as it was given.
        devices: GPUs.
        capacity: Bytes of each; None where it is not known.
        engines: One plan an engine.
        recommended: The fastest engine that fits, by name; None where none does.
        remedies: What to change, the cheapest first; empty where an engine fits without offload.
    """

    model: ModelShape
    training: TrainingShape
    devices: int
    capacity: float | None
    engines: tuple[EnginePlan, ...]
    recommended: str | None
    remedies: tuple[Remedy, ...]

    def of(self, engine: str) -> EnginePlan:
        """The plan of one engine."""
        return next(plan for plan in self.engines if plan.engine == engine)


def plan_memory(
    model: ModelShape,
    training: TrainingShape,
    *,
    devices: int,
    capacity: float | None,
    engine: str | None = None,
) -> MemoryPlan:
    """Work out the memory of a run.

    Args:
        model: The model.
        training: The run.
        devices: GPUs over all machines.
        capacity: Bytes of each; None to add up without judging.
        engine: One engine alone; all of them by default.

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
    raise_all(problems, PlanningError)
    chosen = engines_for(devices, engine)
    plans = tuple(_engine_plan(item, model, training, devices, capacity) for item in chosen)
    fitting = [plan.engine for plan in plans if plan.fits]
    recommended = fitting[0] if fitting else None
    enough = capacity is None or (recommended is not None and not ENGINES[recommended].offloads)
    remedies = () if enough or capacity is None else _remedies(model, training, devices, capacity, chosen)
    return MemoryPlan(model, training, devices, capacity, plans, recommended, remedies)


def _engine_plan(
    engine: Engine, model: ModelShape, training: TrainingShape, devices: int, capacity: float | None
) -> EnginePlan:
    plan = EnginePlan(
        engine.name,
        tuple(engine_terms(engine, model, training, devices)),
        capacity,
        engine.refusal(training),
    )
    if capacity is None:
        return plan
    return replace(plan, largest_micro_batch=_largest_micro_batch(engine, model, training, devices, capacity))


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
        kept = float(model.num_layers * tokens * model.hidden_size * widths.stream)
        text = f"{model.num_layers} layers × {at} × d {model.hidden_size:,} × {widths.stream} B, inputs of the layers"
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

    wide = 3 if layer.gated else 2
    branches = max(layer.experts, 1)
    work = tokens * (
        wide * widths.product * layer.inner_width * branches + 4 * widths.stream * model.hidden_size
    )
    text = f"{at} × ({wide} × {layer.inner_width:,} × {widths.product} B + 4 × d × {widths.stream} B), gradients inside a layer"
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
    chosen = [g for g in model.groups if g.trained and (g.role in ("linear", "adapter") or len(g.shape) == 3)]
    return product * sum(group.elements for group in chosen)


def _largest_micro_batch(
    engine: Engine, model: ModelShape, training: TrainingShape, devices: int, capacity: float
) -> int:
    if engine.refusal(training):
        return 0

    def fits(rows: int) -> bool:
        terms = engine_terms(engine, model, replace(training, micro_batch=rows), devices)
        return EnginePlan(engine.name, tuple(terms), capacity).peak <= capacity

    if not fits(1):
        return 0
    low, high = 1, _MOST_ROWS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _remedies(
    model: ModelShape, training: TrainingShape, devices: int, capacity: float, engines: Sequence[Engine]
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
            EnginePlan(engine.name, tuple(engine_terms(engine, model, training, devices)), capacity)
            for engine in engines
            if engine.refusal(training) is None
        ]
        if not plans:
            return False
        best = next((plan for plan in plans if plan.fits), min(plans, key=lambda plan: plan.peak))
        found.append(Remedy(change, cost, best.engine, best.peak, bool(best.fits)))
        return bool(best.fits)

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
