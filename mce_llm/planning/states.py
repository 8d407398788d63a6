"""What stays on a device between steps: weights, gradients, optimizer states, and the temporaries of an update.

Bytes a parameter follow Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054, §3.1): with Adam and mixed precision
2 + 2 + 12 = 16 where the engine keeps bfloat16 weights beside float32 ones, and 4 + 4 + 8 = 16 where the weights are
float32 and products are cast (autocast).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mce_llm.planning.shapes import ModelShape, ParameterGroup, PlanningError, TrainingShape, bytes_of
from mce_llm.running.messages import nearest_hint

# 4-bit "normal float" with quantised scales: 4 + 8/64 + 32/(64 · 256) bits (Dettmers et al. 2023, arXiv 2305.14314, §3).
_QUANTIZED_BYTES = {"4bit": (4 + 8 / 64 + 32 / (64 * 256)) / 8, "8bit": 1.0}
# bitsandbytes: 8-bit states for tensors of at least 4,096 elements outside embeddings, one float32 scale a block of 256.
_LEAST_FOR_8BIT = 4096
_SCALES_8BIT = 4 / 256


@dataclass(frozen=True)
class OptimizerMemory:
    """What an optimizer keeps.

    Attributes:
        states: Tensors as large as the weights.
        bits: 32 for the dtype of the weights it updates (float32 in each engine's masters), 8 for quantised states.
        factored: Row and column statistics of matrices in place of whole tensors.
        paged: Kept in unified memory, which moves to the host when the device is full.
        scratch: Further tensors as large as the weights while it updates them, 0 where that is done in one kernel.
    """

    states: int
    bits: int = 32
    factored: bool = False
    paged: bool = False
    scratch: int = 0


# `adamw_torch` is PyTorch's multi-tensor form, which holds √v for all parameters of a group at once.
OPTIMIZERS = {
    "adamw_torch": OptimizerMemory(2, scratch=1),
    "adamw_torch_fused": OptimizerMemory(2),
    "adamw_bnb_8bit": OptimizerMemory(2, bits=8),
    "adamw_8bit": OptimizerMemory(2, bits=8),
    "paged_adamw_32bit": OptimizerMemory(2, paged=True),
    "paged_adamw_8bit": OptimizerMemory(2, bits=8, paged=True),
    "lion_32bit": OptimizerMemory(1),
    "lion_8bit": OptimizerMemory(1, bits=8),
    "paged_lion_32bit": OptimizerMemory(1, paged=True),
    "paged_lion_8bit": OptimizerMemory(1, bits=8, paged=True),
    "adafactor": OptimizerMemory(0, factored=True, scratch=1),
    "adagrad": OptimizerMemory(1, scratch=1),
    "rmsprop": OptimizerMemory(1, scratch=1),
    "sgd": OptimizerMemory(0),
}


def optimizer_memory(name: str, momentum: float = 0.0) -> OptimizerMemory:
    """What the optimizer of this name keeps.

    Args:
        name: As in `optim`.
        momentum: Of SGD.

    Raises:
        PlanningError: It is not among those whose memory is known.
    """
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise PlanningError(
            f"no arithmetic for optim {name!r}{nearest_hint(name, OPTIMIZERS)}; it knows {known}"
        )
    found = OPTIMIZERS[name]
    return OptimizerMemory(1) if name == "sgd" and momentum else found


@dataclass(frozen=True)
class Precision:
    """The bytes of weights and gradients under one engine.

    Attributes:
        weight: Of an element of a group, as the model computes with it.
        gradient: Of an element of its gradient.
        master: Of an element of the float32 copy that the optimizer updates, 0 where it updates the weights.
        stream: Of an element of the residual stream.
        product: Of an element of a matrix product.
        casts: Whether weights are cast for each product (autocast on float32 weights).
    """

    weight: Callable[[ParameterGroup], float]
    gradient: int
    master: int
    stream: int
    product: int
    casts: bool


def precision(training: TrainingShape, *, engine_casts: bool, keeps_masters: bool) -> Precision:
    """Bytes under an engine.

    Args:
        training: The run.
        engine_casts: The engine itself holds or gathers weights in the dtype of the products (DeepSpeed, FSDP2), so that
            the residual stream has it too; otherwise autocast casts product by product.
        keeps_masters: The engine keeps low-precision weights and gradients beside float32 masters (DeepSpeed).
    """
    loaded = bytes_of(training.dtype)
    product = bytes_of(training.mixed or training.dtype)
    # FSDP2 under accelerate makes trained weights float32 where mixed precision is on; adapters, and what is trained
    # beside them, are float32 whatever the frozen weights are.
    exact = training.adapter_rank > 0 or (engine_casts and training.mixed is not None)

    def weight(group: ParameterGroup) -> float:
        if keeps_masters:
            return product
        if group.trained and exact:
            return 4
        if training.quantization is not None and group.role == "linear" and not group.trained:
            return _QUANTIZED_BYTES[training.quantization]
        return loaded

    stream = product if engine_casts else loaded
    gradient = product if keeps_masters else (4 if exact else loaded)
    return Precision(
        weight,
        gradient,
        4 if keeps_masters else 0,
        stream,
        product,
        casts=not engine_casts and product < loaded,
    )


def weight_bytes(model: ModelShape, precision: Precision, training: TrainingShape) -> tuple[float, str]:
    """(bytes, arithmetic) of the weights as the model computes with them."""
    total = sum(group.elements * precision.weight(group) for group in model.groups)
    parts: dict[float, int] = {}
    for group in model.groups:
        parts[precision.weight(group)] = parts.get(precision.weight(group), 0) + group.elements
    text = " + ".join(f"{count:,} × {width:.4g} B" for width, count in sorted(parts.items(), reverse=True))
    return total, text


def state_bytes(model: ModelShape, training: TrainingShape, width: int) -> tuple[float, str]:
    """(bytes, arithmetic) of the optimizer states of all trained parameters.

    Args:
        model: The model.
        training: The run.
        width: Bytes of the weights that the optimizer updates; its 32-bit states have the same.
    """
    kind = optimizer_memory(training.optim, training.momentum)
    trained = [group for group in model.groups if group.trained]
    count = sum(group.elements for group in trained)
    if kind.factored:
        lines = sum(
            (sum(group.shape) if len(group.shape) > 1 else group.size) * group.count for group in trained
        )
        return 4.0 * lines, f"{lines:,} rows and columns × 4 B ({training.optim})"
    if kind.states == 0:
        return 0.0, f"{training.optim} keeps none"
    if kind.bits == 8:
        exact = (
            ("embedding", "head") if model.tied else ("embedding",)
        )  # Trainer keeps 32 bits for embeddings
        large = sum(g.elements for g in trained if g.size >= _LEAST_FOR_8BIT and g.role not in exact)
        total = kind.states * (large * (1 + _SCALES_8BIT) + (count - large) * 4)
        text = f"{kind.states} × ({large:,} × 1.016 B + {count - large:,} × 4 B) ({training.optim})"
        return total, text
    return float(kind.states * width * count), f"{count:,} × {kind.states} × {width} B ({training.optim})"
