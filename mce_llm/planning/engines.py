"""What each engine keeps on a device and on the host: partitions, buffers, gathered weights.

ZeRO stages as in Rajbhandari et al. 2020 (arXiv 1910.02054, §5): stage 2 divides gradients and optimizer states by the
number of devices, stage 3 the weights too; offload keeps them in host memory (Ren et al. 2021, ZeRO-Offload, arXiv
2101.06840). Buffer sizes are the defaults of DeepSpeed, which recipes/accelerate/*.yaml leave as they are; what its code
makes beside its buffers was counted in two real processes (tests/planning/test_engines.py). FSDP2 gathers one decoder
layer while it prefetches the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mce_llm.planning.shapes import ModelShape, PlanningError, TrainingShape
from mce_llm.planning.states import (
    Precision,
    optimizer_memory,
    precision,
    state_bytes,
    weight_bytes,
)
from mce_llm.running.messages import nearest_hint

Phase = Literal["always", "forward", "backward", "step", "host"]
"""When memory is taken: all the time, in one part of a step, or in the host's memory."""


@dataclass(frozen=True)
class Term:
    """One line of the arithmetic.

    Attributes:
        name: What takes the memory.
        bytes: How much, on one device (phase `host`: on one machine with all the devices).
        formula: How that comes about.
        phase: When it is there: always, at the end of the forward pass, in the backward pass, or in the optimizer's
            step. Of the last three the largest sum counts.
    """

    name: str
    bytes: float
    formula: str
    phase: Phase = "always"


@dataclass(frozen=True)
class Engine:
    """An engine that a recipe can be launched with.

    Attributes:
        name: As in `--engine` and in the name of its launch configuration.
        shards: What is divided among the devices: nothing (0), gradients and states (2), or the weights too (3).
        deepspeed: Keeps low-precision weights and gradients beside float32 masters.
        offloads: Weights and optimizer states live on the host.
        about: One line for people who choose.
    """

    name: str
    shards: Literal[0, 2, 3]
    deepspeed: bool
    offloads: bool
    about: str

    def precision(self, training: TrainingShape) -> Precision:
        """Bytes of weights, gradients and products under this engine."""
        return precision(
            training,
            engine_casts=self.deepspeed or (self.shards == 3 and training.mixed is not None),
            keeps_masters=self.deepspeed,
        )

    def refusal(self, training: TrainingShape) -> str | None:
        """Why this run cannot be launched with it; None where it can."""
        if training.quantization is not None and self.shards == 3:
            return f"{training.quantization} weights are not sharded"
        kind = optimizer_memory(training.optim, training.momentum)
        if self.offloads and not training.optim.startswith("adamw_torch"):
            return f"offload runs DeepSpeedCPUAdam in place of {training.optim}"
        if self.name == "fsdp2" and kind.bits == 8:
            return f"{training.optim} does not update sharded tensors"
        return None


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("ddp", 0, False, False, "a whole copy on each GPU"),
        Engine("zero2", 2, True, False, "gradients and optimizer states sharded"),
        Engine("zero3", 3, True, False, "weights sharded too"),
        Engine("fsdp2", 3, False, False, "weights sharded too, PyTorch's own"),
        Engine("zero3_offload", 3, True, True, "weights and optimizer states on the host"),
    )
}
"""Name → engine, in the order in which they are tried."""


def engines_for(devices: int, name: str | None = None) -> list[Engine]:
    """The engines to compare on this many devices.

    Args:
        devices: With one, there is nothing to share, and ddp (also called single there) and offload are left.
        name: One engine alone.

    Raises:
        PlanningError: There is no such engine, or `single` on several devices.
    """
    if name is None:
        return [engine for engine in ENGINES.values() if devices > 1 or engine.shards == 0 or engine.offloads]
    if name == "single":
        if devices > 1:
            raise PlanningError(f"engine 'single' is for one GPU, got {devices}; its form for several is ddp")
        name = "ddp"
    if name not in ENGINES:
        known = [*ENGINES, "single"]
        raise PlanningError(
            f"unknown engine {name!r}{nearest_hint(name, known)}; choose from {', '.join(known)}"
        )
    return [ENGINES[name]]


def state_terms(engine: Engine, model: ModelShape, training: TrainingShape, devices: int) -> list[Term]:
    """Weights, masters, gradients and optimizer states on one device, and what the host keeps.

    Args:
        engine: The engine.
        model: The model.
        training: The run.
        devices: GPUs, over all machines.
    """
    widths = engine.precision(training)
    trained = model.trained
    weights, weights_text = weight_bytes(model, widths, training)
    updated = widths.master or widths.gradient
    states, states_text = state_bytes(model, training, updated)
    gradients, gradients_text = float(trained * widths.gradient), f"{trained:,} × {widths.gradient} B"
    masters, masters_text = float(trained * widths.master), f"{trained:,} × {widths.master} B, float32"
    paged = optimizer_memory(training.optim, training.momentum).paged

    weight_share = devices if engine.shards == 3 else 1
    share = devices if engine.shards else 1
    if engine.offloads:
        host = [
            Term("weights", weights, weights_text, "host"),
            Term("gradients", gradients + 4.0 * trained, f"{trained:,} × ({widths.gradient} + 4) B", "host"),
            Term("master weights", masters, masters_text, "host"),
            Term("optimizer states", states, states_text, "host"),
        ]
        return [*host, *_adam_scratch(engine, training, trained, devices)]

    def divided(total: float, text: str, parts: int) -> tuple[float, str]:
        return (
            (total, text)
            if parts == 1
            else (total / parts, f"({text}) ÷ {parts}" if "+" in text else f"{text} ÷ {parts}")
        )

    terms = [
        Term("weights", *divided(weights, weights_text, weight_share)),
        Term("master weights", *divided(masters, masters_text, share)),
        Term("gradients", *divided(gradients, gradients_text, share)),
        Term("optimizer states", *divided(states, states_text, share), "host" if paged else "always"),
    ]
    accumulated = _accumulated(engine, training, trained, devices)
    return [*terms, *accumulated, *_adam_scratch(engine, training, trained, devices)]


def _accumulated(engine: Engine, training: TrainingShape, trained: int, devices: int) -> list[Term]:
    """What there is of gradients besides, where a step has several micro-batches."""
    if training.accumulation == 1:
        return []
    product = engine.precision(training).product
    if engine.name == "fsdp2" and not training.reduces_each_batch:
        # In the dtype in which they are reduced, until the last micro-batch; while they go, layer by layer, the shards come.
        shards = engine.precision(training).gradient / devices
        text = f"{trained:,} × {product} B until the last of {training.accumulation} micro-batches, less the shards (sync_each_batch: false)"
        size = max(trained * (product - shards), 0.0)
        return [Term("unsharded gradients", size, text, phase) for phase in ("forward", "backward")]
    if engine.name == "zero2":
        # `grads_in_partition` of the micro-batch, beside the sum that `all_grad_tensors` keeps of those before it.
        text = f"{trained:,} × {product} B ÷ {devices}, gradients of a micro-batch before they are added"
        return [Term("micro-batch's gradients", trained * product / devices, text, "backward")]
    return []


def _adam_scratch(engine: Engine, training: TrainingShape, trained: int, devices: int) -> list[Term]:
    """What an update needs besides, on the device."""
    if engine.offloads:
        return []
    mine = trained / (devices if engine.shards else 1)
    at_once = min(mine, training.deepspeed.sub_group) if engine.name == "zero3" else mine
    widths = engine.precision(training)
    scratch = optimizer_memory(training.optim, training.momentum).scratch * (widths.master or widths.gradient)
    terms = []
    if engine.deepspeed:
        terms.append(
            Term("float32 gradient", 4 * at_once, f"{at_once:,.0f} × 4 B, cast for the update", "step")
        )
        # The gradients are joined before they are cast; when the update begins, that copy is gone again, and under
        # ZeRO-2, which keeps no buffer of them, the gradients themselves are too.
        p = widths.gradient
        freed = p if engine.shards == 2 else 0
        if p >= scratch - freed:
            text = f"{at_once:,.0f} × {p} B, gradients joined to be cast"
            return [*terms, Term("joined gradients", p * at_once, text, "step")]
        scratch -= freed
    if scratch:
        text = f"{at_once:,.0f} × {scratch} B, {training.optim} updates all at once"
        terms.append(Term("update", scratch * at_once, text, "step"))
    return terms


def buffer_terms(engine: Engine, model: ModelShape, training: TrainingShape, devices: int) -> list[Term]:
    """Buffers for communication, and gathered weights, on one device."""
    widths = engine.precision(training)
    p, layer = widths.product, model.layer.parameters
    table = model.vocabulary * model.hidden_size
    if engine.name == "ddp":
        if devices == 1:
            return []
        size = model.trained * widths.gradient
        return [
            Term(
                "DDP buckets",
                size,
                f"{model.trained:,} × {widths.gradient} B, gradients laid out to be summed",
            )
        ]
    if engine.name == "fsdp2":
        ends = table if model.tied else 2 * table
        largest = max(layer, ends // 2 if not model.tied else ends)
        unit_gradient = 2 * largest * p if model.trained == model.parameters else 0
        return [
            Term(
                "gathered",
                p * (ends + 2 * layer),
                f"(embeddings and head {ends:,} + 2 layers × {layer:,}) × {p} B",
            ),
            *(
                [
                    Term(
                        "unit's gradient",
                        unit_gradient,
                        f"{largest:,} × {p} B × 2, before and in reduce-scatter",
                        "backward",
                    )
                ]
                if unit_gradient
                else []
            ),
        ]
    sizes = training.deepspeed
    # The bucket is allocated whole, however small the model is; ZeRO-2 lets go of it after the backward pass.
    bucket = Term(
        "reduce bucket",
        p * sizes.reduce_bucket,
        f"reduce_bucket_size {sizes.reduce_bucket:,} × {p} B",
        "always" if engine.shards == 3 else "backward",
    )
    joined = min(sizes.reduce_bucket, model.trained)
    copy = Term("bucket laid out", p * joined, f"{joined:,} × {p} B, by ranks, to be reduced", "backward")
    unit = max(layer, table) if model.trained == model.parameters else 0
    gradient = Term("unit's gradient", p * unit, f"{unit:,} × {p} B, until it is in the bucket", "backward")
    buffers = [bucket, copy, *([gradient] if unit else [])]
    if engine.name == "zero2":
        return buffers
    live = min(model.parameters, max(sizes.live, max(layer, table) + sizes.prefetch_bucket))
    text = f"{live:,} × {p} B, at most stage3_max_live_parameters"
    if not model.tied and live < model.parameters:
        # Gathered weights come and go in the memory of a stream of their own. Layers are cut out of the block that held
        # the embeddings, so that the head, which is as large, finds no block and gets a new one.
        live += table
        text = f"({live - table:,} + {table:,}) × {p} B, stage3_max_live_parameters, and the head in a block of its own"
    # What is prefetched arrives in one piece and is then copied out of it, matrix by matrix. Whole matrices are fetched
    # until the bucket is full, so the last of them overshoots.
    ahead = min(model.parameters, sizes.prefetch_bucket + model.largest_matrix)
    fetched = f"{ahead:,} × {p} B, stage3_prefetch_bucket_size and the matrix that fills it"
    return [Term("gathered", p * live, text), Term("prefetched", p * ahead, fetched), *buffers]
